"""How stages are learned: the settings that a caller may choose; all else is chosen by what pays.

Lengths are in updates of a ratio network.
"""

from dataclasses import dataclass, field
from typing import Literal

from ebmscale.density.path import Annealing


@dataclass(frozen=True)
class TrainerSettings:
    """How one network is trained.

    Attributes:
        batch_size: samples of each side in an update.
        rate: of Adam; constant while exploring, then along a cosine to zero.
        weight_decay: decoupled; see `trainer.Adam`.
        evidence_every: updates from one held-out loss to the next.
        min_updates: a stage at least.
        max_updates: a stage at most.
        bound: of the ratio in nats (see `networks.Bounded`); None chooses by how far apart the two sides are.
        start: of a quadratic head: at the log ratio of the two Gaussians that have the moments of either side, as
            strong as held-out samples bear; or at zero.
        bf16: whether an update's products of matrices are in bf16. Weights, Adam's moments and held-out losses are in
            fp32 all the same.
    """

    batch_size: int = 512
    rate: float = 2e-3
    weight_decay: float = 0.3
    evidence_every: int = 50
    min_updates: int = 400
    max_updates: int = 20_000
    bound: float | None = None
    start: Literal["moments", "zero"] = "moments"
    bf16: bool = False


@dataclass(frozen=True)
class ParticleSettings:
    """How samples of p_k are had.

    Attributes:
        candidates: of a weighted negative.
        min_share: effective share of the base's draws below which particles are moved instead.
        pool_size: particles that a stage is trained on.
        most_uses: of a particle where it stands.
        num_tune: particles that find the gain.
        groups: of particles that measure log Z, which never mix, and
        group_size: particles of each.
        num_fresh: fresh negatives that judge a stage where they are draws of the base.
        annealing: how particles are brought from one prior to the next.
    """

    candidates: int = 10
    min_share: float = 0.02
    pool_size: int = 8192
    most_uses: int = 4
    num_tune: int = 4096
    groups: int = 4
    group_size: int = 1024
    num_fresh: int = 65536
    annealing: Annealing = field(default_factory=lambda: Annealing(ess=0.6, resample_below=1.0))


@dataclass(frozen=True)
class StageSettings:
    """How a sequence of stages is learned.

    Attributes:
        max_stages: K at most.
        significance: a stage counts if its bound exceeds this many standard errors.
        min_gain: a stage that adds fewer nats is the last.
        gain_limit: a ratio is multiplied by at most this.
        trainer: of one stage.
        particles: of p_k.
    """

    max_stages: int = 8
    significance: float = 2.0
    min_gain: float = 0.003
    gain_limit: float = 30.0
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    particles: ParticleSettings = field(default_factory=ParticleSettings)
