"""Metrics on a GPU equal those on a CPU up to rounding."""

import pytest
import torch

from ebmscale.evaluate.features import open_features
from ebmscale.evaluate.metrics import measure_metric
from ebmscale.model.pixels import to_pixels

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
]


@pytest.mark.parametrize("metric", ["reconstruction", "frechet", "likelihood"])
def test_metrics_are_those_of_a_cpu(make_model, digits, classifier_url, metric):
    model = make_model()
    found = [
        measure_metric(
            model.to(device), digits, metric, open_features(classifier_url, device), "validation", 128
        ).values
        for device in ("cpu", "cuda")
    ]
    assert found[1] == pytest.approx(found[0], rel=0.05)


def test_scores_are_those_of_a_cpu(make_model):
    model = make_model()
    x = to_pixels(torch.randint(256, (8, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)))
    on_gpu = model.to("cuda").score(x)
    for part, values in model.score(x)._asdict().items():
        assert getattr(on_gpu, part).device.type == "cpu"
        torch.testing.assert_close(getattr(on_gpu, part), values, rtol=0.02, atol=0.1)
