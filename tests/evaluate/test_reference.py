"""The features of the reference are computed once, kept where it is possible, and found again."""

import pytest
import torch

from ebmscale.errors import StorageError
from ebmscale.evaluate.features import Features
from ebmscale.evaluate.metrics import measure_metric
from ebmscale.storage import Storage


@pytest.fixture
def counted():
    """Features that are the pixels, and the list of the numbers of images that they were asked for."""
    calls = []

    def extract(images):
        calls.append(len(images))
        return images.flatten(1).float()

    return Features("FD-pixels", 64, "0" * 64, None, extract), calls


def frechet(model, digits, features, *places):
    return measure_metric(model, digits, "frechet", features, "validation", 60, 2, places=places).values


def test_a_kept_reference_gives_the_same_numbers_without_computing_it(make_model, digits, counted, tmp_path):
    model, (features, calls), place = make_model(), counted, Storage.at(tmp_path)
    first = frechet(model, digits, features, place)
    images = sum(calls)
    calls.clear()
    assert frechet(model, digits, features, place) == first
    assert sum(calls) == images - 60
    [file] = place.list("features")
    assert file.startswith("FD-pixels-validation-")


def test_another_choice_of_images_or_network_has_a_reference_of_its_own(make_model, digits, counted, tmp_path):
    model, (features, _), place = make_model(), counted, Storage.at(tmp_path)
    frechet(model, digits, features, place)
    measure_metric(model, digits, "frechet", features, "validation", 50, 2, places=(place,))
    other = Features("FD-pixels", 64, "1" * 64, None, features.extract)
    frechet(model, digits, other, place)
    assert len(place.list("features")) == 3


@pytest.mark.parametrize("damage", [b"", b"no tensors"])
def test_a_damaged_reference_is_computed_again(make_model, digits, counted, tmp_path, damage):
    model, (features, _), place = make_model(), counted, Storage.at(tmp_path)
    first = frechet(model, digits, features, place)
    [file] = place.list("features")
    place.publish(f"features/{file}", damage)
    assert frechet(model, digits, features, place) == first
    assert place.size(f"features/{file}") > len(damage)


def test_a_place_that_cannot_be_written_is_passed_over(make_model, digits, counted, tmp_path, monkeypatch):
    model, (features, _) = make_model(), counted
    closed, place = Storage.at(tmp_path / "closed"), Storage.at(tmp_path / "open")
    publish = Storage.publish

    def refuse(storage, name, data):
        if storage.url == closed.url:
            raise StorageError("read-only")
        publish(storage, name, data)

    monkeypatch.setattr(Storage, "publish", refuse)
    frechet(model, digits, features, closed, place)
    assert len(place.list("features")) == 1


def test_points_of_the_reference_are_the_features(make_model, digits, counted, tmp_path):
    from safetensors.torch import load

    model, (features, _), place = make_model(), counted, Storage.at(tmp_path)
    frechet(model, digits, features, place)
    found = load(place.read_bytes(f"features/{place.list('features')[0]}"))
    assert float(found["count"]) == len(found["points"]) == 60
    torch.testing.assert_close(found["points"].double().mean(0), found["mean"])
