"""What a campaign does: how many faults, on which processes, in which order, and the run that they strike."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from tests.chaos.faults import KINDS, Kind
from tests.chaos.leg import Topology

BATCH = 32
BUCKET = "chaos"
ROOM = 5120  # samples; a quarter of a second for each batch of a long outage
RATIO_DAMAGE = KINDS[-1]

RUN = """
run: {{name: NAME, seed: {seed}}}
storage: {{url: s3://{bucket}/runs, retries: 6}}
data:
  {{url: s3://{bucket}/digits, format: digits, retries: 12,
   validation_fraction: 0.2, num_streams: 4, shuffle_window: 16}}
model: {{latent_dim: 4, generator: {{width: 2}}, encoder: {{width: 2}}, ratio: {{hidden: [16, 16]}}}}
posterior: {{num_steps: 3, step_size: 0.1}}
prior: {{num_steps: 2, step_size: 0.3, num_chains: 32, equilibrate_steps: 5, sample_steps: 5}}
stages:
  {{max_stages: 8, updates_per_batch: 2, batch_size: 32, buffer_samples: 256,
   min_samples: {third}, max_samples: {stage}, settle_samples: {third},
   evidence_every: {every}, evidence_samples: 64, significance: 0.01}}
train: {{batch_size: {batch}, max_samples: {max_samples}, generator: {{rate: 3.0e-3}}, ratio: {{rate: 3.0e-3}}}}
checkpoint: {{every_samples: {every}, keep_last: 3, retry_s: 8}}
metrics: {{every_samples: {every}, tensorboard: false}}
num_threads: 1
"""


@dataclass(frozen=True)
class Limits:
    """How long the harness waits for a start, a step of the run, the end of processes, the end of the run.

    `outage_s` is how long a long outage of the server lasts.
    """

    start_s: float = 180.0
    step_s: float = 120.0
    end_s: float = 60.0
    finish_s: float = 300.0
    outage_s: float = 25.0


@dataclass(frozen=True)
class Plan:
    """What a campaign does.

    Attributes:
        num_faults: of all kinds together.
        seed: of the faults and of the run.
        topologies: one for the whole run, or several of which each restart takes another one.
        checkpoint_every: samples between checkpoints.
        spacing: checkpoints between two faults of a training run.
        limits: of the harness.
    """

    num_faults: int
    seed: int
    topologies: tuple[Topology, ...]
    checkpoint_every: int = 1280
    spacing: int = 3
    limits: Limits = Limits()

    @property
    def is_fixed(self) -> bool:
        """Whether the run must equal an undisturbed one bit for bit."""
        return len(self.topologies) == 1

    def max_samples(self, num_slots: int) -> int:
        """The run's length for so many faults while it trains, with room for what it does while its storage is away."""
        room = -(-ROOM // self.checkpoint_every)
        return (self.spacing * (num_slots + 1) + room) * self.checkpoint_every


def make_schedule(num_faults: int, chance: random.Random) -> list[tuple[Kind, list[Kind]]]:
    """Faults of a training run in a random order, with those that follow while it is down; all kinds equally often."""
    repeats, rest = divmod(num_faults, len(KINDS))
    kinds = [*KINDS * repeats, *chance.sample(KINDS, rest)]
    training = [kind for kind in kinds if kind.when != "down"]
    chance.shuffle(training)
    schedule: list[tuple[Kind, list[Kind]]] = [(kind, []) for kind in training]
    ends = [index for index, kind in enumerate(training) if kind.when == "ends" and index > 0]
    for kind in kinds:
        if kind.when == "down":
            late = [index for index in ends if index >= len(training) // 2]
            schedule[chance.choice(late if kind is RATIO_DAMAGE else ends)][1].append(kind)
    return schedule


def topologies(sizes: Sequence[int], zero_stages: Sequence[int | None]) -> tuple[Topology, ...]:
    """All of them."""
    return tuple(Topology(size, stage) for size in sizes for stage in zero_stages)


def config_text(plan: Plan, num_slots: int) -> str:
    """The run's configuration, for so many faults while it trains: several stages, all intervals alike."""
    every = plan.checkpoint_every
    stage = max(6, num_slots * plan.spacing // 6) * every
    return RUN.format(
        seed=plan.seed,
        bucket=BUCKET,
        third=stage // 3 // every * every,
        stage=stage,
        every=every,
        batch=BATCH,
        max_samples=plan.max_samples(num_slots),
    )
