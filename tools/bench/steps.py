"""The error of unadjusted Langevin chains by step size, on a prior with exact samples.

    python tools/bench/steps.py runs/compare-fashion_mnist/adaptive-seed0 features/fashion_mnist --sizes 0.2,0.3,0.4

It draws latents from the run's base p_0 and moves them by chains on p_0 itself. Exact chains would keep their
distribution. It prints the Frechet distance of their images to the test part before and after the chains.
"""

import argparse

import torch

from ebmscale.data.chunks import read_split
from ebmscale.data.manifest import Manifest
from ebmscale.density.langevin import LangevinSettings, run_chain, start
from ebmscale.evaluate.features import open_features
from ebmscale.evaluate.frechet import Moments, frechet_distance
from ebmscale.model.load import load
from ebmscale.model.pixels import to_images
from ebmscale.storage import Storage


def main() -> None:
    """Measures and prints a line for every size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("features")
    parser.add_argument("--sizes", default="0.1,0.2,0.3,0.4")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--num", type=int, default=5000)
    arguments = parser.parse_args()
    model, features = load(arguments.run), open_features(arguments.features)
    data = Storage.at(model.config.data.url)
    images, _, _ = read_split(data, Manifest.load(data), "test", arguments.num)
    reference = Moments(features.num_features)
    reference.add(features(images))
    inside = model.prior.prefix(0).in_coordinates()
    generator = torch.Generator().manual_seed(0)
    z = inside.base.from_noise(torch.randn(arguments.num, inside.base.dim, generator=generator))

    def distance(white: torch.Tensor) -> float:
        moments = Moments(features.num_features)
        base = model.prior.base
        latents = base.from_coordinates(white) if hasattr(base, "from_coordinates") else white
        for part in latents.split(500):
            moments.add(features(to_images(model.decode(part))))
        return frechet_distance(moments, reference)

    print(f"exact draws: {features.name} {distance(z):.1f}")
    for size in map(float, arguments.sizes.split(",")):
        noise = torch.randn(arguments.num, arguments.steps, inside.base.dim, generator=generator)
        state, _ = run_chain(inside.evaluate, start(inside.evaluate, z), noise, LangevinSettings(arguments.steps, size))
        print(f"after {arguments.steps} steps of {size:g}: {distance(state.z):.1f}", flush=True)


if __name__ == "__main__":
    main()
