"""Labels in shards of others: none is lost without a word, none is made up."""

import pytest

from ebmscale.data.index import index
from tests.data.tar_files import (
    Link,
    SymbolicLink,
    assert_same_images,
    encode,
    image,
    labels_by_key,
    make_tar,
    members,
)


@pytest.mark.parametrize("order", ["labels after", "labels before", "mixed", "labels in reverse"])
def test_labels_may_lie_anywhere_in_the_tar(storage, order):
    images = [(f"{number:03d}.png", encode("png", image(number))) for number in range(8)]
    labels = [(f"{number:03d}.cls", str(number % 3).encode()) for number in range(8)]
    entries = {
        "labels after": images + labels,
        "labels before": labels + images,
        "mixed": [entry for pair in zip(images, labels[4:] + labels[:4], strict=True) for entry in pair],
        "labels in reverse": labels[::-1] + images,
    }[order]
    storage.publish("s.tar", make_tar(entries))
    manifest = index(storage)
    assert labels_by_key(manifest) == {f"{number:03d}": str(number % 3) for number in range(8)}
    assert_same_images(storage, manifest, {f"{number:03d}": number for number in range(8)})


def test_links_count_as_what_they_lead_to(storage):
    entries = [
        ("./a/0.cls", b"1"),
        ("./a/0.png", encode("png", image(0))),
        ("./a/1.png", encode("png", image(1))),
        ("./a/1.cls", Link("./a/0.cls")),
        ("./b/2.png", Link("./a/1.png")),
        ("./b/2.cls", SymbolicLink("../a/1.cls")),
        ("./b/3.png", SymbolicLink("4.png")),  # which comes later
        ("./b/3.cls", SymbolicLink("2.cls")),
        ("./b/4.png", encode("png", image(4))),
    ]
    storage.publish("s.tar", make_tar(entries))
    manifest = index(storage)
    assert labels_by_key(manifest) == {"a/0": "1", "a/1": "1", "b/2": "1", "b/3": "1", "b/4": None}
    assert_same_images(storage, manifest, {"a/0": 0, "a/1": 1, "b/2": 1, "b/3": 4, "b/4": 4})
    offsets = manifest.index(0).offsets.tolist()
    assert offsets == sorted(offsets)


def test_links_that_lead_nowhere_are_said(storage, caplog):
    entries = [
        *members(range(3)),
        ("x.png", Link("gone.png")),
        ("y.png", encode("png", image(3))),
        ("y.cls", Link("no")),
    ]
    storage.publish("s.tar", make_tar([*entries, ("a.cls", Link("b.cls")), ("b.cls", Link("a.cls"))]))
    notes = []
    manifest = index(storage, note=notes.append)
    assert labels_by_key(manifest)["y"] is None
    assert notes == [
        "3 of 7 samples left out",
        "1 labels cannot be read (the first, of y, is a link to no, which the shard does not hold)",
    ]
    assert "x is a link to gone.png, which the shard does not hold" in caplog.text


@pytest.mark.parametrize(
    ("ending", "contents", "classes"),
    [
        ("json", [b'{"label": -1}', b'{"label": 0}', b'{"label": 1}'], ["-1", "0", "1"]),
        ("json", [b'{"label": 3.0}', b"3", b'{"cls": "3"}'], ["3", "3", "3"]),
        (
            "txt",
            [b"20240101000000", b"20240101000001", b"20240101000000"],
            ["20240101000000", "20240101000001", "20240101000000"],
        ),
        ("cls", [b"\xef\xbb\xbf0\r\n", b"0\n", b"1"], ["0", "0", "1"]),
        ("cls", [b"caf\xe9", "caf\u00e9".encode(), b"cafe"], ["caf\\xe9", "caf\u00e9", "cafe"]),
    ],
)
def test_labels_are_those_of_the_source(storage, ending, contents, classes):
    entries = [
        (f"{n}.{end}", data)
        for n, text in enumerate(contents)
        for end, data in (("png", encode("png", image(n))), (ending, text))
    ]
    storage.publish("s.tar", make_tar(entries))
    manifest = index(storage)
    assert list(labels_by_key(manifest).values()) == classes
    assert len(manifest.classes) <= 4


def test_one_label_of_several_counts(storage):
    png = encode("png", image(0))
    entries = [
        ("a.txt", b"a caption"),
        ("a.png", png),
        ("a.json", b'{"label": 1}'),
        ("a.cls", b"2"),
        ("b.json", b"[1]"),
        ("b.txt", b"3"),
        ("b.png", png),
    ]
    storage.publish("s.tar", make_tar(entries))
    assert labels_by_key(index(storage)) == {"a": "2", "b": "3"}


def test_labels_that_cannot_be_read_are_said(storage):
    png = encode("png", image(0))
    storage.publish(
        "s.tar",
        make_tar([("a.png", png), ("a.json", b'{"label": [1, 2]}'), ("b.png", png), ("b.json", b'{"width": 3}')]),
    )
    notes = []
    assert labels_by_key(index(storage, note=notes.append)) == {"a": None, "b": None}
    assert notes == ["1 labels cannot be read (the first, of a, is '[1, 2]', neither a whole number nor a name)"]


def test_captions_are_no_classes(storage):
    png = encode("png", image(0))
    entries = [
        (f"{number:02d}.{ending}", content)
        for number in range(12)
        for ending, content in (("png", png), ("txt", b"number %d" % number))
    ]
    storage.publish("s.tar", make_tar(entries))
    notes = []
    manifest = index(storage, note=notes.append)
    assert (manifest.classes, notes) == ([], ["12 texts (.txt) taken for captions, not for classes"])
    assert "no labels" in manifest.summary()


def test_numbers_of_each_sample_are_said_to_be_classes(storage):
    png = encode("png", image(0))
    entries = [
        (f"{number:02d}.{ending}", content)
        for number in range(12)
        for ending, content in (("png", png), ("cls", b"%d" % number))
    ]
    storage.publish("s.tar", make_tar(entries))
    notes = []
    assert "12 class(es)" in index(storage, note=notes.append).summary()
    assert notes == ["nearly every one of 12 labels is a class of its own; check that they are classes"]


def test_a_field_between_key_and_ending(storage):
    entries = []
    for number in range(3):
        entries += [
            (f"s{number}.input.png", encode("png", image(number))),
            (f"s{number}.target.png", encode("png", image(number, (3, 2, 2)))),
        ]
        entries += [(f"s{number}.label.cls", b"1")]
    storage.publish("s.tar", make_tar(entries))
    notes = []
    manifest = index(storage, note=notes.append)
    assert labels_by_key(manifest) == dict.fromkeys(["s0", "s1", "s2"], "1")
    assert notes == ["3 further images of these samples not used"]
    assert_same_images(storage, manifest, {f"s{number}": number for number in range(3)})


def test_classes_that_look_alike_are_said(storage):
    labels = [b"Cat", b"cat", b"dog"]
    entries = [
        entry
        for number, label in enumerate(labels)
        for entry in ((f"{number}.png", encode("png", image(number))), (f"{number}.cls", label))
    ]
    storage.publish("s.tar", make_tar(entries))
    notes = []
    index(storage, note=notes.append)
    assert notes == ["classes 'Cat' and 'cat' differ only in case, or in how accents are encoded"]
