"""A pool of particles of p_{k-1}, of which a part moves at every use.

Shapes: P particles, B rows of a batch, Z coordinates.
"""

import torch
from torch import Tensor

from ebmscale.density.langevin import ChainState, start
from ebmscale.density.moves import MoveSettings, move
from ebmscale.density.prior import RatioSequence
from ebmscale.errors import DivergenceError
from ebmscale.kernels.prior_chain import prior_target
from ebmscale.kernels.quadratics import merged
from ebmscale.stages.draws import Draws
from ebmscale.stages.supplies import REMEMBERED, Negatives

HALVINGS = 40
MOVES = MoveSettings(kind="hmc", num_leapfrog=3)
"""Of a particle at its turn: far enough that a network cannot memorise where the particles are."""


class Pool:
    """Particles that take turns: those whose turn it is move once, serve as negatives, and serve once more.

    So half of a batch moves. The other half are those that moved for the update before. A particle whose move was
    refused serves again where it stands, but not more than `most_uses` times: then it takes smaller and smaller steps
    until one is accepted.

    Args:
        sequence: p_{k-1}.
        z: (P, Z) particles of it, this worker's; P is a multiple of the rows that it draws.
        lengths: (Z,) of the moves' steps. They stay, so that nothing depends on the number of workers.
        fresh: (M, Z) particles of it that no update sees.
        most_uses: of a particle where it stands.
        draws: noise.
        name: of the noise.
    """

    kind = "moved pool"

    def __init__(
        self,
        sequence: RatioSequence,
        z: Tensor,
        lengths: Tensor,
        fresh: Tensor,
        most_uses: int,
        draws: Draws,
        name: str,
    ):
        self._target = prior_target(merged(sequence))
        self.state = start(self._target, z.clone())
        self.uses = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        self._lengths = lengths[None]
        self._fresh, self._most_uses, self._draws, self._name = fresh, most_uses, draws, name
        self.passes = 1.5 * MOVES.num_leapfrog * sequence.num_stages

    def draw(self, num: int, position: int) -> Negatives:
        """See `supplies.Supply.draw`."""
        noise = self._draws.noise(num, f"{self._name}/pool", position)
        turn = self._turn(num)
        rows, again = self._rows(turn, position), self._rows(turn, position - 1)[: noise.num_rows - turn]
        momentum, uniform = noise.normal(self.state.z.shape[1])[:turn], noise.uniform()[:turn]
        before = ChainState(*(part[rows] for part in self.state))
        steps = torch.ones(turn, device=before.z.device)
        args = (self._target, steps, self._lengths, MOVES)
        moved, _ = move(before, momentum, uniform, *args)
        stands = (moved.z == before.z).all(1)
        uses = torch.where(stands, self.uses[rows], 0)
        for _ in range(HALVINGS):
            stuck = (uses + 1 + bool(len(again)) > self._most_uses).nonzero()[:, 0]
            if not len(stuck):
                break
            steps[stuck] *= 0.5
            stood = ChainState(*(part[stuck] for part in moved))
            momentum, uniform = noise.normal(before.z.shape[1])[:turn], noise.uniform()[:turn]
            tried, _ = move(stood, momentum[stuck], uniform[stuck], self._target, steps[stuck], *args[2:])
            uses[stuck] = torch.where((tried.z != stood.z).any(1), 0, uses[stuck])
            for whole, part in zip(moved, tried, strict=True):
                whole[stuck] = part
        else:
            raise DivergenceError("Particles of the prior cannot move at any step size; use a lower rate.")
        for whole, part in zip(self.state, moved, strict=True):
            whole[rows] = part
        self.uses[rows] = uses
        rows = torch.cat([rows, again])
        self.uses[rows] += 1
        return Negatives(self.state.z[rows], torch.ones(len(rows)))

    def fresh(self, num: int, position: int) -> Negatives:
        """See `supplies.Supply.fresh`."""
        z = self._fresh[:num]
        return Negatives(z, torch.ones(len(z)))

    def used(self, batch: int, position: int) -> Negatives:
        """See `supplies.Supply.used`."""
        turn = self._turn(batch)
        recent = range(max(position - min(REMEMBERED, len(self.uses) // turn), 0), max(position, 1))
        rows = torch.cat([self._rows(turn, before) for before in recent])
        return Negatives(self.state.z[rows], torch.ones(len(rows)))

    def packed(self) -> Tensor:
        """What a checkpoint holds of it, in one table (P, 2 Z + 2): z, score, log density and uses."""
        z, log_density, score = self.state
        return torch.cat([z, score, log_density[:, None], self.uses[:, None].to(z)], dim=1)

    def unpack(self, table: Tensor) -> None:
        """Takes what `packed` gave."""
        dim = self.state.z.shape[1]
        z, score, log_density, uses = table.split([dim, dim, 1, 1], dim=1)
        self.state = ChainState(z.clone(), log_density[:, 0].clone(), score.clone())
        self.uses = uses[:, 0].long()

    def _turn(self, num: int) -> int:
        """How many of this worker's particles move for `num` rows of all workers: half of them, in whole streams."""
        streams = self._draws.num_streams
        return int((self._draws.rows(num) < -(-num // (2 * streams)) * streams).sum())

    def _rows(self, turn: int, position: int) -> Tensor:
        """Whose turn it is."""
        return (torch.arange(turn) + position * turn) % len(self.uses)
