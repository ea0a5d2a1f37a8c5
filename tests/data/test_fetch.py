"""Downloads from a server on loopback that behaves as badly as it is told."""

import gzip
import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ebmscale.cli import cli
from ebmscale.data.fetch import ATTEMPTS, DATA_SETS, DataSet, File, fetch
from ebmscale.data.formats import open_source
from ebmscale.errors import ConfigError, DataError, StorageError

SHARED = Path(__file__).parents[3] / "shared" / "data"
CONTENT = np.random.default_rng(0).bytes(300_000)


class Server(ThreadingHTTPServer):
    """Serves `files`; each fault in `faults` is used up by one request: a status, or bytes after which to hang up."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {"a.bin": CONTENT}
        self.faults = []
        self.ranges = True
        self.requests = []  # (path, Range header)
        self.url = f"http://127.0.0.1:{self.server_port}/place"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        asked = self.headers.get("Range")
        self.server.requests.append((self.path, asked))
        fault = self.server.faults.pop(0) if self.server.faults else None
        data = self.server.files.get(self.path.removeprefix("/place/"))
        if isinstance(fault, tuple) and len(fault) == 2:
            self.send_response(fault[0])
            self.send_header("Location", fault[1])
            return self.end_headers()
        if isinstance(fault, tuple):
            return self.send_error(fault[0])
        if data is None:
            return self.send_error(404)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.ranges else 0
        if start and start >= len(data):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start:] if fault is None else data[start : start + fault])
        return None

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    """A server that has the one file of the data set `toy`."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as running:
        toy = DataSet((running.url,), (File("a.bin", hashlib.md5(CONTENT).hexdigest()),))
        monkeypatch.setitem(DATA_SETS, "toy", toy)
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def pauses():
    return []


@pytest.fixture
def download(tmp_path, pauses):
    """A function that fetches `toy` without waiting."""
    return lambda **options: fetch("toy", tmp_path, sleep=pauses.append, **options)


def test_a_file_arrives_and_is_not_fetched_again(server, download, tmp_path):
    progress = []
    assert download(progress=lambda *seen: progress.append(seen)) == [tmp_path / "a.bin"]
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert progress[-1] == ("a.bin", len(CONTENT), len(CONTENT))
    download()
    assert server.requests == [("/place/a.bin", None)]
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_a_damaged_file_is_fetched_again(server, download, tmp_path):
    (tmp_path / "a.bin").write_bytes(CONTENT[:-1])
    download()
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_connection_that_breaks_is_resumed(server, download, pauses, tmp_path):
    server.faults = [100_000, 50_000, 0]
    download()
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert [asked for _, asked in server.requests] == [None, "bytes=100000-", "bytes=150000-", "bytes=150000-"]
    assert pauses == [1, 1, 1]


def test_a_later_call_resumes(server, download, tmp_path):
    server.faults = [100_000] + [(503,)] * ATTEMPTS
    with pytest.raises(StorageError, match=r"after 5 attempts \(HTTP 503 .*run the same command again"):
        download()
    assert (tmp_path / "a.bin.part").stat().st_size == 100_000
    assert not (tmp_path / "a.bin").exists()
    download()
    assert server.requests[-1] == ("/place/a.bin", "bytes=100000-")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_whole_part_is_only_renamed(server, download, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(CONTENT)
    download()
    assert server.requests == []
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("part", [b"x" * 1000, CONTENT + b"longer", b"x" * len(CONTENT)])
def test_a_spoilt_part_is_thrown_away(server, download, tmp_path, part):
    (tmp_path / "a.bin.part").write_bytes(part)
    download()
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_busy_twice(server, download, pauses):
    server.faults = [(503,), (503,)]
    download()
    assert len(server.requests) == 3
    assert pauses == [1, 2]


def test_without_ranges_it_starts_over(server, download, tmp_path):
    server.ranges = False
    server.faults = [100_000, 200_000]
    download()
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert len(server.requests) == 3


def test_a_server_that_always_breaks_is_given_up(server, download, pauses):
    server.ranges = False
    server.faults = [1000] * 100
    with pytest.raises(StorageError, match="after 5 attempts"):
        download()
    assert len(server.requests) == 1 + ATTEMPTS
    assert pauses == [1, 1, 2, 4, 8]


def test_other_content_is_refused_and_leaves_nothing(server, download, tmp_path):
    server.files["a.bin"] = CONTENT[:-1] + b"?"
    with pytest.raises(DataError, match=r"/place/a\.bin is not the published file \(md5 .* was expected\)"):
        download()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", ["missing", "other content"])
def test_the_next_place_is_tried(server, download, monkeypatch, bad):
    if bad == "other content":
        server.files["a.bin"] = b"other"
    server.files["second/a.bin"] = CONTENT
    first = f"{server.url}/{'nowhere' if bad == 'missing' else ''}".rstrip("/")
    toy = DATA_SETS["toy"]._replace(places=(first, f"{server.url}/second"))
    monkeypatch.setitem(DATA_SETS, "toy", toy)
    assert download()[0].read_bytes() == CONTENT


def test_a_missing_file_and_a_server_that_is_not_there(server, download, pauses):
    del server.files["a.bin"]
    with pytest.raises(StorageError, match="HTTP 404"):
        download()
    assert len(server.requests) == 1
    server.shutdown()
    server.server_close()
    with pytest.raises(StorageError, match=r"after 5 attempts .*refused"):
        download()


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/a.bin"])
def test_a_server_that_sends_us_off_the_web_is_refused(server, download, pauses, tmp_path, target):
    server.faults = [(302, target)]
    with pytest.raises(StorageError, match=r"redirects to .*, which is not http\(s\)"):
        download()
    assert len(server.requests) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_sends_us_on_is_followed(server, download):
    server.faults = [(302, f"{server.url}/a.bin")]
    assert download()[0].read_bytes() == CONTENT


def test_next_to_nothing_is_as_good_as_nothing(server, download, monkeypatch):
    monkeypatch.setattr("ebmscale.data.fetch.TIMEOUT_S", 0.0)
    monkeypatch.setattr("ebmscale.data.fetch.LEAST_BYTES", 10**9)
    monkeypatch.setattr("ebmscale.data.fetch._READ_BYTES", 1000)  # so that no number of attempts has the whole file
    with pytest.raises(StorageError, match=r"after 5 attempts \(fewer than 1,000,000,000 bytes came"):
        download()


def test_files_are_fetched_to_this_machine_alone(server):
    with pytest.raises(ConfigError, match="is not on this machine"):
        fetch("toy", "s3://bucket/toy")


def test_no_secret_of_a_mirror_is_shown(server, download, monkeypatch):
    mirror = server.url.replace("//", "//user:PASSW0RD@") + "?sig=PASSW0RD"
    with pytest.raises(StorageError) as error:
        download(mirror=mirror)
    assert "PASSW0RD" not in str(error.value)


def test_a_mirror_replaces_the_official_places(server, download):
    server.files["mine/a.bin"] = server.files.pop("a.bin")
    assert download(mirror=f"{server.url}/mine/")[0].read_bytes() == CONTENT
    with pytest.raises(ConfigError, match="must begin with http"):
        download(mirror="file:///etc")


@pytest.mark.parametrize("same", [True, False])
def test_content_that_was_compressed_again_is_the_same(server, download, monkeypatch, same):
    server.files["a.gz"] = gzip.compress(CONTENT, 1)
    file = File("a.gz", "0" * 32, hashlib.md5(CONTENT if same else CONTENT[1:]).hexdigest())
    monkeypatch.setitem(DATA_SETS, "toy", DataSet((server.url,), (file,)))
    if same:
        assert gzip.decompress(download()[0].read_bytes()) == CONTENT
    else:
        with pytest.raises(DataError, match="is not the published file"):
            download()


def test_unknown_sets_and_folders_that_cannot_be(server, tmp_path):
    with pytest.raises(ConfigError, match="choose one of mnist, fashion_mnist, cifar10, svhn"):
        fetch("imagenet", tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="Cannot write to"):
        fetch("toy", tmp_path / "file")


def test_celeba_explains_its_licence_until_the_files_are_there(tmp_path):
    with pytest.raises(DataError, match=r"without agreeing .* list_eval_partition\.txt there, unpack"):
        fetch("celeba", tmp_path)
    (tmp_path / "img_align_celeba").mkdir()
    (tmp_path / "list_eval_partition.txt").write_text("000001.jpg 0\n")
    assert len(fetch("celeba", tmp_path)) == 2


@pytest.mark.skipif(not (SHARED / "mnist").exists(), reason="the official MNIST files are not on this machine")
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_the_real_files_with_the_published_checksums(server, tmp_path, name):
    """Through the command, over a connection that breaks once; then the set opens."""
    server.files = {file.name: (SHARED / name / file.name).read_bytes() for file in DATA_SETS[name].files}
    server.faults = [1_000_000]
    result = CliRunner().invoke(cli, ["fetch", name, str(tmp_path / name), "--mirror", server.url])
    assert result.exit_code == 0, result.output
    assert "train-images-idx3-ubyte.gz" in result.output
    assert open_source("idx", str(tmp_path / name)).counts == {"train": 60000, "test": 10000}
