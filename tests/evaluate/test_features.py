"""Features: layout and preprocessing of the standard network, and classifiers that are trained and saved."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ebmscale.data.formats import Record, Source
from ebmscale.data.manifest import Manifest
from ebmscale.data.pack import pack
from ebmscale.errors import ConfigError, DataError, DivergenceError, StorageError
from ebmscale.evaluate.classifier import Recipe, load_classifier, train_classifier
from ebmscale.evaluate.features import open_features
from ebmscale.model.pixels import to_pixels
from ebmscale.networks.inception import BlockE, FidInception, _average, preprocess, resize
from ebmscale.storage import Storage

SHAPES = {  # of the published file
    "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
    "Conv2d_4a_3x3.bn.running_var": (192,),
    "Mixed_5b.branch_pool.conv.weight": (32, 192, 1, 1),
    "Mixed_5d.branch5x5_2.conv.weight": (64, 48, 5, 5),
    "Mixed_6a.branch3x3dbl_3.conv.weight": (96, 96, 3, 3),
    "Mixed_6b.branch7x7_2.conv.weight": (128, 128, 1, 7),
    "Mixed_6e.branch7x7dbl_4.conv.weight": (192, 192, 7, 1),
    "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
    "Mixed_7b.branch3x3_2b.conv.weight": (384, 384, 3, 1),
    "Mixed_7c.branch3x3dbl_1.conv.weight": (448, 2048, 1, 1),
    "Mixed_7c.branch_pool.bn.bias": (192,),
    "fc.weight": (1008, 2048),
    "fc.bias": (1008,),
}


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """A file of the standard layout with random weights, without the counters that the published one lacks."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = FidInception().state_dict()
    weights = {key: value for key, value in weights.items() if not key.endswith("num_batches_tracked")}
    path = tmp_path_factory.mktemp("inception") / "pt_inception.pth"
    torch.save(weights, path)
    return path


def test_inception_has_the_parameters_of_the_published_file():
    with torch.device("meta"):
        state = FidInception().state_dict()
    names = [key for key in state if not key.endswith("num_batches_tracked")]
    assert len(names) == 94 * 5 + 2  # convolutions, each with four tensors of its normalisation; the last layer
    assert {key: tuple(state[key].shape) for key in SHAPES} == SHAPES
    trained = [key for key in names if "running" not in key]
    assert sum(state[key].numel() for key in trained) == 21_785_568 + 1008 * 2049  # without and with the last layer


def test_weights_by_path_give_the_distance_its_name(inception_file):
    features = open_features(str(inception_file))
    assert (features.name, features.num_features, len(features.sha256)) == ("FID", 2048, 64)
    grey = torch.randint(0, 256, (2, 1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = features(grey)
    assert found.shape == (2, 2048)
    assert found.isfinite().all()
    assert not torch.equal(found[0], found[1])
    torch.testing.assert_close(features(grey[1:].expand(-1, 3, -1, -1)), found[1:], rtol=1e-4, atol=1e-5)
    with pytest.raises(DataError, match="1 or 3 channels"):
        features.check((4, 28, 28))


@settings(max_examples=20)
@given(st.integers(1, 9), st.integers(1, 20), st.integers(0, 1000))
def test_resizing_is_that_of_tensorflow_1(size, side, seed):
    """Every output pixel by its definition: at i * (size / side), between the pixels below and above, the last kept."""
    x = torch.rand(1, 2, size, size, generator=torch.Generator().manual_seed(seed))
    found = resize(x, side).double()

    def between(line, i):
        at = np.float32(i) * np.float32(size / side)
        low = min(int(at), size - 1)
        return line[low] + (at - int(at)) * (line[min(low + 1, size - 1)] - line[low])

    rows = np.stack([between(x[0, 0].numpy(), i) for i in range(side)])
    expected = np.stack([between(rows.T, i) for i in range(side)]).T
    np.testing.assert_allclose(found[0, 0], expected, atol=1e-5)


def test_doubling_keeps_every_pixel_and_puts_means_between():
    x = torch.tensor([[[[0.0, 4.0], [8.0, 12.0]]]])
    expected = [[0.0, 2.0, 4.0, 4.0], [4.0, 6.0, 8.0, 8.0], [8.0, 10.0, 12.0, 12.0], [8.0, 10.0, 12.0, 12.0]]
    assert resize(x, 4)[0, 0].tolist() == expected


def test_pixels_are_scaled_as_the_graph_does():
    images = torch.tensor([0, 128, 255], dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 5, 5)
    x = preprocess(images)
    assert x.shape == (3, 3, 299, 299)
    assert x.amin((1, 2, 3)).tolist() == x.amax((1, 2, 3)).tolist() == [-1.0, 0.0, 127 / 128]


def test_pooling_branches_differ_from_the_usual_network():
    assert torch.equal(_average(torch.ones(1, 1, 4, 4)), torch.ones(1, 1, 4, 4))  # the padding does not count
    with torch.random.fork_rng():
        torch.manual_seed(0)
        block = BlockE(4, by_maximum=True).eval()
    x = torch.rand(1, 4, 5, 5, generator=torch.Generator().manual_seed(1))
    by_maximum = block(x)
    block.by_maximum = False
    by_mean = block(x)
    assert torch.equal(by_maximum[:, :-192], by_mean[:, :-192])
    assert not torch.equal(by_maximum[:, -192:], by_mean[:, -192:])


def test_other_files_are_refused(tmp_path, inception_file):
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(StorageError, match="not a file of tensors alone"):
        open_features(str(tmp_path / "text.pth"))
    torch.save({"a": torch.zeros(3)}, tmp_path / "small.pth")
    with pytest.raises(StorageError, match="472 of 472 tensors are missing or of another shape"):
        open_features(str(tmp_path / "small.pth"))
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(StorageError, match="not a file of tensors alone"):
        open_features(str(tmp_path / "list.pth"))
    with pytest.raises(StorageError, match="does not exist"):
        open_features(str(tmp_path / "absent.pth"))


def test_a_folder_without_features_is_refused_for_that_reason(digits_url, tmp_path):
    with pytest.raises(ConfigError, match=r"no features in the folder .* It holds a packed set: it is for data.url"):
        open_features(digits_url)
    with pytest.raises(ConfigError, match=r"no features in the folder .*weights of Inception\.$"):
        open_features(str(tmp_path))


def test_a_classifier_is_trained_and_opened_again(classifier_url, digits_url):
    features = open_features(classifier_url)
    about = json.loads(Storage.at(classifier_url).read_text("feature_net.json"))
    assert features.name == "FD-digits-classifier"
    assert features.sha256 == about["sha256"]
    assert about["accuracy"] > 0.9
    assert about["held_out"] == "validation, 95 images"
    network, _ = load_classifier(Storage.at(classifier_url))
    images = torch.randint(0, 256, (60, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = features(images)
    assert found.shape == (60, 64)
    torch.testing.assert_close(network.output(found), network(to_pixels(images)), rtol=1e-4, atol=1e-4)
    with pytest.raises(DataError, match=r"takes images of shape \(1, 8, 8\) and the run's are \(3, 32, 32\)"):
        features.check((3, 32, 32))


def test_training_is_a_function_of_the_seed(digits):
    manifest = Manifest.load(digits)
    once, again = (train_classifier(digits, manifest, Recipe(width=2, epochs=0.2, seed=4)) for _ in range(2))
    for name, weight in once.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])


def test_a_short_training_has_a_schedule_and_one_that_diverges_is_refused(digits):
    manifest = Manifest.load(digits)
    num_images = manifest.counts()["train"]
    for num_updates in range(1, 6):
        train_classifier(digits, manifest, Recipe(width=2, epochs=num_updates * 4 / num_images, batch_size=4))
    with pytest.raises(DivergenceError, match="lower learning rate"):
        train_classifier(digits, manifest, Recipe(width=2, epochs=1.0, rate=1e38))


def test_a_damaged_classifier_is_refused(classifier_url, tmp_path):
    whole = Storage.at(classifier_url)
    damaged = Storage.at(tmp_path)
    weights = bytearray(whole.read_bytes("feature_net.safetensors"))
    weights[-1] ^= 1
    damaged.publish("feature_net.safetensors", bytes(weights))
    damaged.publish("feature_net.json", whole.read_bytes("feature_net.json"))
    with pytest.raises(StorageError, match="its sha256 differs from that in"):
        open_features(damaged.url)
    damaged.publish("feature_net.json", b"{}")
    with pytest.raises(StorageError, match="does not describe a classifier"):
        open_features(damaged.url)


@pytest.mark.parametrize(
    ("dtype", "label", "words"), [("float32", 0, "float32 arrays"), ("uint8", -1, "samples without a label")]
)
def test_a_set_that_cannot_be_classified_is_refused(tmp_path, dtype, label, words):
    image = np.zeros((1, 8, 8), dtype)
    records = [Record(f"a-{i}", image, label, "train") for i in range(3)]
    source = Source("odd", "toy", image.shape, dtype, ["a"] if label >= 0 else [], {"train": 3}, lambda: iter(records))
    storage = Storage.at(tmp_path)
    with pytest.raises(DataError, match=words):
        train_classifier(storage, pack(source, storage), Recipe())
