"""Compares the fused chain with `run_chain`, in Triton's interpreter or on a GPU; prints one JSON line a case."""

import json
import sys

import torch

from ebmscale.density.langevin import LangevinSettings, run_chain, start
from ebmscale.density.prior import RatioSequence, StandardNormal
from ebmscale.kernels import fused_chain
from ebmscale.networks import RatioNet

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def compare(case: dict) -> dict:
    device, dim = case.get("device", "cpu"), case["dim"]
    generator = torch.Generator().manual_seed(0)
    network = RatioNet(dim, case["hidden"], case.get("activation", "silu")).to(device)
    prior = RatioSequence(StandardNormal(dim), network)
    for _ in range(case["stages"]):
        drawn = {n: torch.randn(w.shape, generator=generator) * 0.3 for n, w in network.state_dict().items()}
        prior = prior.append({name: weight.to(device) for name, weight in drawn.items()})
    settings = LangevinSettings(case["steps"], 0.3, noise_scale=0.8, temperature=1.2)
    z = torch.randn(dim, case["chains"], generator=generator).T.to(device)  # not contiguous
    noise = torch.randn(case["chains"], case["steps"], dim, generator=generator).to(device)
    handed = noise
    if case.get("seed") is not None:
        handed = case["seed"]
        noise = fused_chain.counter_noise(case["seed"], case["chains"], case["steps"], dim, device)
    before, calls = z.clone(), []
    dtype = DTYPES[case["dtype"]]
    got, trace = fused_chain.run(prior, z, handed, settings, case.get("launch", 100), lambda: calls.append(1), dtype)
    end, wanted = run_chain(prior.evaluate, start(prior.evaluate, z), noise, settings, evaluate_end=False)
    return {
        "error": float((got - end.z).norm() / (end.z - z).norm()),
        "trace": max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(trace, wanted, strict=True)),
        "untouched": bool(torch.equal(z, before)),
        "launches": len(calls),
        "noise": [float(noise.mean()), float(noise.std())],
    }


if __name__ == "__main__":
    for case in json.loads(sys.argv[1]):
        print(json.dumps(compare(case)))
