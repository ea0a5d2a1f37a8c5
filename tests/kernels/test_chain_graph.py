"""Which chains are captured, with a stand-in for the capture. On a GPU: a graph equals the chain."""

import pytest
import torch

from ebmscale.density.langevin import LangevinSettings
from ebmscale.density.prior import RatioSequence, StandardNormal
from ebmscale.kernels import chain_graph
from ebmscale.kernels.chain_graph import ChainGraphs, Chains, Subject, run_chains
from ebmscale.model.posterior import posterior_target
from ebmscale.networks import RatioNet, build_generator

SETTINGS = LangevinSettings(4, 0.1)
SIGMA = 0.3


def subject(device: str = "cpu") -> Subject:
    generator = build_generator(5, (1, 8, 8), 4, generator=torch.Generator().manual_seed(0)).to(device)
    return Subject(generator.requires_grad_(False), prior(device))


def prior(device: str, seed: int = 1) -> RatioSequence:
    network, drawn = RatioNet(5, [16, 16]).to(device), torch.Generator().manual_seed(seed)
    weights = {name: 0.3 * torch.randn(w.shape, generator=drawn) for name, w in network.state_dict().items()}
    return RatioSequence(StandardNormal(5), network).append({n: w.to(device) for n, w in weights.items()})


def chains(rows: int, seed: int, device: str = "cpu") -> Chains:
    drawn = torch.Generator().manual_seed(seed)
    shapes = ((rows, 5), (rows, 1, 8, 8), (rows, SETTINGS.num_steps, 5))
    return Chains(*(torch.randn(shape, generator=drawn).to(device) for shape in shapes))


def run(graphs: ChainGraphs, of: Subject, given: Chains, after_step=lambda: None):
    return graphs.run(of, lambda x: posterior_target(of.prior, of.generator, x, SIGMA), given, SETTINGS, after_step)


def expected(of: Subject, given: Chains):
    return run_chains(posterior_target(of.prior, of.generator, given.x, SIGMA), given, SETTINGS, lambda: None)


def test_chains_of_one_shape_and_prior_are_captured_the_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    captured = []

    class Stand:
        def __init__(self, target_of, given, settings):
            captured.append(len(given.z))
            self.target_of, self.settings = target_of, settings

        def replay(self, given):
            return run_chains(self.target_of(given.x), given, self.settings, lambda: None)

    monkeypatch.setattr(chain_graph, "_Graph", Stand)
    graphs, of, steps = ChainGraphs(), subject(), []
    for seed, rows in enumerate((6, 3, 6, 6, 3)):
        given = chains(rows, seed)
        ends = run(graphs, of, given, lambda: steps.append(1))
        torch.testing.assert_close(ends.z, expected(of, given).z, rtol=0, atol=0)
    assert captured == [6, 3]
    assert len(steps) == 5 * SETTINGS.num_steps, "every rank counts the same steps, whether it captured or not"
    other = Subject(of.generator, prior("cpu", 2))
    for seed in range(3):
        run(graphs, other, chains(6, seed))
    assert captured == [6, 3, 6], "a new prior is captured anew"
    for rows in range(10, 20):
        run(graphs, other, chains(rows, 0))
        run(graphs, other, chains(rows, 1))
    assert len(captured) == 3 + chain_graph.MOST_GRAPHS - 1


def test_chains_that_cannot_be_captured_run_step_by_step(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries = []

    def refuse(*_):
        tries.append(1)
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(chain_graph, "_Graph", refuse)
    graphs, of = ChainGraphs(), subject()
    for seed in range(4):
        given = chains(6, seed)
        torch.testing.assert_close(run(graphs, of, given).z, expected(of, given).z, rtol=0, atol=0)
    assert len(tries) == 1
    assert "cannot be captured (operation not permitted" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
def test_a_graph_is_the_chain_on_a_gpu() -> None:
    graphs, of = ChainGraphs(), subject("cuda")
    for seed in range(4):
        given = chains(7, seed, "cuda")
        ends, wanted = run(graphs, of, given), expected(of, given)
        for name in ("z", "first", "trace"):
            torch.testing.assert_close(getattr(ends, name), getattr(wanted, name), rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            for weight in of.generator.parameters():  # as a refresh of the sampling copy does
                weight.mul_(1.02)
    assert len(graphs._graphs) == 1
    other = Subject(of.generator, prior("cuda", 2))
    for seed in range(3):
        given = chains(7, seed, "cuda")
        torch.testing.assert_close(run(graphs, other, given).z, expected(other, given).z, rtol=1e-4, atol=1e-4)
