"""Negatives that are samples of p_k as a density: exact or weighted draws of the base, else particles that move.

Every rank draws its own rows for training. What is measured once a stage (the gain along annealed particles, log Z,
the particles of the next prior) is computed by the first rank and sent to the others.

Shapes: B rows of this rank, R updates, M held-out posterior latents, P particles, G groups, S streams, Z coordinates.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ebmscale.density.langevin import ChainTrace
from ebmscale.density.prior import RatioSequence
from ebmscale.errors import ConfigError, DivergenceError
from ebmscale.model.pieces import Piece, Span, piece, share_of, whole_spans
from ebmscale.model.saved_part import SavedPart
from ebmscale.seeds import StreamNoise, derive
from ebmscale.stages.draws import Draws
from ebmscale.stages.from_base import FromBase
from ebmscale.stages.negatives import Freeze
from ebmscale.stages.particles import Strength
from ebmscale.stages.pools import Pool
from ebmscale.stages.ratio_settings import RatioSettings
from ebmscale.stages.settings import ParticleSettings
from ebmscale.stages.source import Grown
from ebmscale.stages.stream_table import StreamTable
from ebmscale.stages.supplies import Negatives, Supply, unweighted
from ebmscale.stages.trainer import evaluated
from ebmscale.world import World

GAIN_LIMIT = 30.0
GROUPS = 4
MIN_SHARE = 0.02
"""Effective share of the draws of p_0 below which particles are used."""
FRESH = 8192
"""Fresh negatives of a measurement, over all ranks."""
ENOUGH = 2000
"""Held-out posteriors from which on one half chooses the gain and the other half judges it."""


class _Found(NamedTuple):
    """What the first rank found at a freeze: the strength, its bound with an error, and the state of the source."""

    strength: Strength
    bound: tuple[float, float]
    tensors: dict[str, Tensor]
    values: dict[str, Any]


class DensityNegatives:
    """A `NegativeSource` over `FromBase`, and the part of a checkpoint that holds its particles (a `SavedPart`).

    Args:
        settings: how ratios are trained and the prior is sampled.
        prior: p_0 with the form of the ratios.
        world: this process's place.
    """

    judges_gain = True

    def __init__(self, settings: RatioSettings, prior: RatioSequence, world: World):
        streams = settings.num_streams
        num = settings.chains.num_particles // streams * streams
        self.tables: dict[str, StreamTable] = {}
        self.parts: dict[str, SavedPart] = {"particles": self}
        self.trace: ChainTrace | None = None
        self._batch_size, self._world = settings.stages.batch_size, world
        self._settings = ParticleSettings(
            pool_size=num, num_tune=num // 2, groups=GROUPS, group_size=num // (2 * GROUPS), min_share=MIN_SHARE
        )
        self._draws = Draws(derive(settings.seed, "negatives"), streams, world.rank, world.size, world.device)
        self._moving = StreamTable(streams, num // streams, 2 * prior.base.dim + 2, world)
        self._restored: dict[str, Tensor] = {}
        self._values: Mapping[str, Any] = {}
        self.begin(prior, 0)

    @property
    def passes(self) -> float:
        """See `NegativeSource.passes`."""
        return self._supply.passes

    def begin(self, prior: RatioSequence, position: int) -> None:
        """See `NegativeSource.begin`."""
        self._use(self._source_on(prior))

    def advance(self, prior: RatioSequence, position: int) -> None:
        """Nothing: particles move when they are drawn."""

    def draw(self, prior: RatioSequence, noise: StreamNoise, streams: Tensor, num_updates: int) -> Negatives:
        """See `NegativeSource.draw`; the noise is that of the stage's updates."""
        updates = range(self._updates, self._updates + num_updates)
        drawn = [self._supply.draw(self._batch_size, update) for update in updates]
        self._updates += num_updates
        return Negatives(*(torch.stack(parts, 1) for parts in zip(*drawn, strict=True)))

    def held_out(self, prior: RatioSequence, position: int) -> Negatives:
        """See `NegativeSource.held_out`."""
        return self._supply.fresh(FRESH, position)

    def shown(self, prior: RatioSequence, num: int) -> Tensor:
        """See `NegativeSource.shown`."""
        return prior.from_coordinates(unweighted(*self._supply.fresh(FRESH, 0))[:num])

    def used(self) -> Negatives | None:
        """See `NegativeSource.used`."""
        return self._supply.used(self._batch_size, self._updates) if self._updates else None

    def spread(self) -> tuple[Tensor, Tensor]:
        """See `NegativeSource.spread`."""
        rows = self._source.tune.rows
        return rows.mean(0), rows.std(0).clamp(min=1e-12)

    def freeze(self, prior: RatioSequence, weights: Mapping[str, Tensor], q: Tensor, position: int) -> Freeze:
        """See `NegativeSource.freeze`; a ratio that particles cannot follow has a bound that is not a number."""
        found = self._world.broadcast(self._tilted(prior, weights, q) if self._world.is_first else None)
        after = found.strength.append(prior, weights)

        def keep() -> None:
            source = self._source_on(after)
            source.load(after.in_coordinates(), found.tensors, found.values)
            self._use(source)

        return Freeze(after, found.strength, keep, found.bound)

    def _tilted(self, prior: RatioSequence, weights: Mapping[str, Tensor], q: Tensor) -> _Found:
        network = copy.deepcopy(prior.network).to(q.device)
        network.load_state_dict(weights)
        source = copy.copy(self._source)
        tune, judge = (q[0::2], q[1::2]) if len(q) >= ENOUGH else (q, q)
        before = prior.in_coordinates()
        try:
            strength, grown = _accepted(source, before, network, tune)
        except DivergenceError:
            return _Found(Strength(0.0), (math.nan, math.nan), {}, {})
        nats = strength.added(before, evaluated(network, judge), judge)
        error = math.hypot(float(nats.std()) / math.sqrt(len(nats)), grown.by_error)
        values = source.values()
        return _Found(strength, (float(nats.mean()) - grown.by, error), source.tensors(), values)

    def undone_if_stopped(self) -> AbstractContextManager[None]:
        """See `NegativeSource.undone_if_stopped`; nothing of it changes."""
        return nullcontext()

    def take_restarted(self) -> int:
        """See `NegativeSource.take_restarted`."""
        return 0

    def rehearse(self, prior: RatioSequence) -> None:
        """See `NegativeSource.rehearse`; there are particles where there are ratios, which cost the most."""
        source = self._source_on(prior.prefix(0))
        tune = source.tune.z
        if prior.num_stages:
            noise = self._draws.whole.noise(self._settings.pool_size, "rehearsal", 0).normal(tune.shape[2])
            shapes = self._shapes_of_particles()
            tensors = {f"{name}/z": noise[: size[0] * size[1]].view(size) for name, size in shapes.items()}
            tensors |= {f"{name}/log_z": torch.zeros(size[0], 0).double() for name, size in shapes.items()}
            source.load(prior.in_coordinates(), tensors, source.values())
        self._use(source)

    def values(self) -> dict[str, Any]:
        """See `NegativeSource.values`."""
        judge = self._source.judge
        log_z = [] if judge is None else judge.log_z.tolist()
        return {"updates": self._updates, "judge_log_z": log_z, **self._source.values()}

    def load_values(self, values: Mapping[str, Any]) -> None:
        """See `NegativeSource.load_values`."""
        self._values = values

    def resume(self, prior: RatioSequence) -> None:
        """See `NegativeSource.resume`."""
        log_z = torch.tensor(self._values["judge_log_z"], dtype=torch.float64, device=self._world.device)
        names = ["tune", "judge", "pool"] if len(log_z) else ["tune"]
        tensors = {f"{name}/z": self._restored[name].to(self._world.device) for name in names}
        tensors |= {f"{name}/log_z": log_z if name == "judge" else log_z.new_zeros(1, 0) for name in names}
        source = self._source_on(prior)
        source.load(prior.in_coordinates(), tensors, self._values)
        self._use(source, self._values["updates"])
        if isinstance(self._supply, Pool):
            self._supply.unpack(_by_row(self._moving))

    def shapes(self) -> dict[str, torch.Size]:
        """See `SavedPart.shapes`."""
        moving = {f"moving/{name}": size for name, size in self._moving.shapes().items()}
        return self._shapes_of_particles() | moving

    def check_shapes(self, found: Mapping[str, Sequence[int]]) -> None:
        """See `SavedPart.check_shapes`."""
        wrong = [name for name, size in self.shapes().items() if torch.Size(found.get(name, ())) != size]
        if wrong:
            raise ConfigError(
                f"The checkpoint keeps the particles {wrong[0]} in another shape than prior.num_particles asks for; "
                "set it back, or train anew under another run.name."
            )

    def share(self) -> list[Piece]:
        """See `SavedPart.share`."""
        if isinstance(self._supply, Pool):
            packed = self._supply.packed()
            self._moving.fill(packed.view(-1, len(self._moving.z), packed.shape[1]).transpose(0, 1).flatten(0, 1))
        held = {"tune": self._source.tune, "judge": self._source.judge, "pool": self._source.pool}
        particles = [
            piece(name, torch.zeros(size) if (walkers := held[name]) is None else walkers.z)
            for name, size in self._shapes_of_particles().items()
        ]
        moving = [Piece(one.span._replace(name=f"moving/{one.span.name}"), one.values) for one in self._moving.share()]
        return share_of(particles, self._world.rank, self._world.size) + moving

    def wanted(self) -> list[Span]:
        """See `SavedPart.wanted`."""
        moving = [span._replace(name=f"moving/{span.name}") for span in self._moving.wanted()]
        return whole_spans(self._shapes_of_particles()) + moving

    def restore(self, values: Mapping[Span, Tensor]) -> None:
        """See `SavedPart.restore`; `resume` takes them into use."""
        shapes = self._shapes_of_particles()
        self._restored = {span.name: values[span].view(shapes[span.name]) for span in whole_spans(shapes)}
        wanted = self._moving.wanted()
        self._moving.restore({span: values[span._replace(name=f"moving/{span.name}")] for span in wanted})

    def _shapes_of_particles(self) -> dict[str, torch.Size]:
        settings, dim = self._settings, self._source.tune.z.shape[2]
        sizes = {
            "tune": (1, settings.num_tune),
            "judge": (settings.groups, settings.group_size),
            "pool": (1, settings.pool_size),
        }
        return {name: torch.Size((*size, dim)) for name, size in sizes.items()}

    def _source_on(self, prior: RatioSequence) -> FromBase:
        return FromBase(prior.in_coordinates(), self._settings, self._draws, GAIN_LIMIT)

    def _use(self, source: FromBase, updates: int = 0) -> None:
        self._source, self._supply, self._updates = source, source.supply().supply, updates

    _source: FromBase
    _supply: Supply
    _updates: int


def _accepted(source: FromBase, before: RatioSequence, network: nn.Module, q: Tensor) -> tuple[Strength, Grown]:
    """The strength of a ratio, and what it made of the prior; the source goes on to it.

    Raises:
        DivergenceError: the particles cannot follow.
    """
    strength = source.tilt(network, q)
    if strength.gain <= 0:
        return Strength(0.0), Grown(source.log_z, source.log_z_error, 0.0, 0.0)
    return strength, source.accept(strength.append(before, network.state_dict()))


def _by_row(table: StreamTable) -> Tensor:
    """The rows of a table of O streams with N slots in the order in which this rank draws them, (N * O, W)."""
    return table.z.transpose(0, 1).flatten(0, 1)
