"""The updates of the SVHN preset in plain PyTorch, in one process, as a baseline for the whole system.

    python tools/bench/bare.py --updates 10 [--share 0.5] [--core 0]

Images are in memory; there are no ranks and no storage, and only the time is measured. `--share` is the part of the
batch, of the chains and of the ratio's batch that one of several workers has. Prints one line of JSON.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path[0] = str(Path(__file__).parents[2])

from ebmscale.density.losses import nce
from ebmscale.networks.generator import Generator
from ebmscale.networks.ratio_net import RatioNet

BATCH, LATENT, SIGMA, NUM_IMAGES = 100, 100, 0.3, 4000
POSTERIOR_STEPS, POSTERIOR_SIZE = 20, 0.1
PRIOR_STEPS, PRIOR_SIZE, NUM_CHAINS = 5, 0.2, 500
RATIO_UPDATES, RATIO_BATCH, BUFFER = 8, 256, 3200
WARM = 2  # updates left out


class Bare:
    """Networks, optimisers and latents; `share` is the part of the batch in this process."""

    def __init__(self, share: float) -> None:
        torch.manual_seed(0)
        self.batch, self.ratio_batch = round(BATCH * share), round(RATIO_BATCH * share)
        self.generator = Generator(LATENT, (3, 32, 32), 64)
        self.copy = Generator(LATENT, (3, 32, 32), 64).requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ratio = RatioNet(LATENT, (200, 200), "leaky_relu")
        self.optimizers = [
            torch.optim.Adam(self.generator.parameters(), 1e-4, (0.5, 0.999)),
            torch.optim.Adam(self.ratio.parameters(), 1e-3, (0.9, 0.999)),
        ]
        self.images = torch.rand(NUM_IMAGES, 3, 32, 32) * 2 - 1
        self.buffer = torch.randn(round(BUFFER * share), LATENT)
        self.chains = torch.randn(round(NUM_CHAINS * share), LATENT)

    def update(self, number: int) -> None:
        """Posterior chain, generator, prior chains, ratio."""
        first = number * self.batch % (NUM_IMAGES - self.batch)
        x = self.images[first : first + self.batch]
        self.copy.load_state_dict(self.generator.state_dict())

        def log_density(z: Tensor) -> Tensor:
            error = (x - self.copy(z)).square().flatten(1).sum(1)
            return -0.5 * z.square().sum(1) - 0.5 / SIGMA**2 * error

        z = langevin(log_density, torch.randn(self.batch, LATENT), POSTERIOR_STEPS, POSTERIOR_SIZE)
        loss = (x - self.generator(z)).square().flatten(1).sum(1).mean() * (0.5 / SIGMA**2)
        step(self.optimizers[0], self.generator, loss)
        self.buffer = torch.cat([self.buffer[self.batch :], z])
        self.chains = langevin(lambda z: -0.5 * z.square().sum(1), self.chains, PRIOR_STEPS, PRIOR_SIZE)
        for _ in range(RATIO_UPDATES):
            real = self.buffer[torch.randint(len(self.buffer), (self.ratio_batch,))]
            made = self.chains[torch.randint(len(self.chains), (self.ratio_batch,))]
            step(self.optimizers[1], self.ratio, nce(self.ratio(real), self.ratio(made)))


def langevin(log_density: Any, z: Tensor, num_steps: int, size: float) -> Tensor:
    """A chain that needs one gradient a step."""
    for _ in range(num_steps + 1):
        z = z.detach().requires_grad_()
        [score] = torch.autograd.grad(log_density(z).sum(), z)
        z = z + size**2 / 2 * score + size * torch.randn_like(z)
    return z.detach()


def step(optimizer: torch.optim.Optimizer, module: nn.Module, loss: Tensor) -> None:
    """One step of an optimiser."""
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(module.parameters(), float("inf"))  # the norm is reported
    optimizer.step()


def main() -> None:
    """Prints wall and CPU seconds of an update, without the first ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=10)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--core", type=int)
    given = parser.parse_args()
    if given.core is not None:
        os.sched_setaffinity(0, {given.core})
    torch.set_num_threads(1)
    bare = Bare(given.share)
    for number in range(WARM):
        bare.update(number)
    wall, cpu = time.perf_counter(), time.process_time()
    for number in range(WARM, given.updates):
        bare.update(number)
    taken = given.updates - WARM
    found = {"wall_s": (time.perf_counter() - wall) / taken, "cpu_s": (time.process_time() - cpu) / taken}
    print(json.dumps(found | {"all_cpu_s": time.process_time()}))


if __name__ == "__main__":
    main()
