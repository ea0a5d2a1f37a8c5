"""Submission without a cluster: what is refused and uploaded, and a client whose connection is lost."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from ebmscale.config import parse_config
from ebmscale.errors import ConfigError, Interrupted, WorkersLostError
from ebmscale.runtime import submit as module
from ebmscale.runtime.package import MOST_BYTES, Package, examine_folder
from ebmscale.runtime.submit import _check, _variables, follow, submit
from ebmscale.terminal import Terminal

CONFIG = """
run: {name: a}
data: {url: /data}
train: {max_samples: 1}
storage: {url: /runs}
ray: {num_workers: 2}
"""
LOG = "".join(f"line {i}\n" for i in range(10))


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)


class Client:
    """A job server that closes connections after so many characters and fails now and then."""

    def __init__(self, status="SUCCEEDED", code=0, connections=(), failures=0):
        self.status, self.code = status, code
        self.connections = list(connections)
        self.failures = failures

    async def tail_job_logs(self, job):
        if not self.connections:
            raise ConnectionError
        end = self.connections.pop(0)
        for start in range(0, end, 7):  # every connection begins at the beginning
            yield LOG[start : min(start + 7, end)]
        raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")

    def get_job_info(self, job):
        if self.failures:
            self.failures -= 1
            raise ConnectionError
        over = not self.connections
        return SimpleNamespace(
            status=SimpleNamespace(value=self.status if over else "RUNNING"), driver_exit_code=self.code
        )

    def get_job_logs(self, job):
        return LOG


@pytest.mark.parametrize("connections", [(), (0, 0), (5, 5, 60), (40, 20, 41), (len(LOG),)])
def test_the_log_is_whole_and_nothing_comes_twice(connections):
    written = []
    assert follow(Client(connections=connections, failures=2), "job", written.append) == 0
    assert "".join(written) == LOG


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [("SUCCEEDED", 0, 0), ("FAILED", 3, 3), ("FAILED", 5, 5), ("FAILED", None, 6), ("STOPPED", None, 130)],
)
def test_it_ends_as_the_job_did(status, code, expected):
    assert follow(Client(status, code, [10]), "job", lambda text: None) == expected


def test_a_server_that_stays_away_is_given_up_with_the_way_back():
    with pytest.raises(WorkersLostError, match="submit --attach job-1"):
        follow(Client(failures=10**9), "job-1", lambda text: None, patience_s=0.0)


@pytest.mark.parametrize("place", ["tail_job_logs", "get_job_info", "sleep"])
def test_a_signal_ends_the_following_and_says_that_the_job_goes_on(monkeypatch, place):
    def interrupt(*_):
        raise KeyboardInterrupt("SIGTERM")

    client = Client(connections=(5, 5))
    monkeypatch.setattr(*((module.time, "sleep") if place == "sleep" else (client, place)), interrupt)
    with pytest.raises(Interrupted, match="the job continues: `ebmscale submit --attach job-1`"):
        follow(client, "job-1", lambda text: None)


def test_a_job_that_nobody_knows(monkeypatch):
    client = Client()

    def unknown(job):
        raise RuntimeError("Request failed with status code 404: Job job-1 does not exist.")

    monkeypatch.setattr(client, "get_job_info", unknown)
    with pytest.raises(WorkersLostError, match="knows no job job-1"):
        follow(client, "job-1", lambda text: None)


@pytest.mark.parametrize(
    ("override", "words"),
    [("ray.num_workers=0", "trains in one process"), ("storage.url=runs", "storage.url is runs"),
     ("data.url=data/x", "data.url is data/x")],
)  # fmt: skip
def test_what_cannot_work_on_another_machine_is_refused(override, words):
    _check(parse_config(CONFIG))
    with pytest.raises(ConfigError, match=words):
        _check(parse_config(CONFIG, [override]))


def test_variables_are_passed_on(monkeypatch):
    monkeypatch.setenv("MINE", "1")
    monkeypatch.delenv("NOBODYS", raising=False)
    assert _variables(["MINE", "OTHER=a=b"]) == {"MINE": "1", "OTHER": "a=b"}
    with pytest.raises(ConfigError, match="NOBODYS=VALUE"):
        _variables(["NOBODYS"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, size in {
        "code.py": 10, "big.bin": 500, "runs/old/x": 999, ".git/config": 5, "sub/keep": 20, "sub/drop": 30,
        "ignored.log": 7, "configs/a.yaml": 3,
    }.items():  # fmt: skip
        path = tmp_path / "work" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
    (tmp_path / "work" / ".gitignore").write_text("/runs/\n*.log\n")
    (tmp_path / "work" / "sub" / ".rayignore").write_text("drop\n")
    return tmp_path / "work"


def test_a_package_is_what_ray_packs(folder: Path, tmp_path: Path):
    packaging = pytest.importorskip("ray._private.runtime_env.packaging")
    from zipfile import ZipFile

    found = examine_folder(folder)
    packaging.create_package(str(folder), tmp_path / "p.zip", include_gitignore=True, excludes=[".git", ".venv"])
    packed = {Path(name): entry.file_size for name, entry in ZipFile(tmp_path / "p.zip").NameToInfo.items()}
    assert dict(found.files) == packed
    assert found.files[0] == (Path("big.bin"), 500)
    assert found.summary().startswith(f"{len(packed)} files, 0.0 MB; largest: big.bin 0.0 MB")
    assert found.holds(folder / "configs" / "a.yaml")
    assert not found.holds(folder / "ignored.log")


SECRET_FILES = [".env", "[a]*?!#/ b.pem", "sub/.aws/credentials", "!odd.key"]


def test_files_of_secrets_stay_here_and_no_others(folder: Path, tmp_path: Path):
    packaging = pytest.importorskip("ray._private.runtime_env.packaging")
    from zipfile import ZipFile

    before = examine_folder(folder)
    for name in SECRET_FILES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("secret")
    (folder / "a.pem.txt").write_text("no secret")
    found = examine_folder(folder)
    assert sorted(map(str, found.withheld)) == sorted(SECRET_FILES)
    assert {path for path, _ in found.files} == {path for path, _ in before.files} | {Path("a.pem.txt")}
    excludes = [".git", ".venv", *found.excludes]
    packaging.create_package(str(folder), tmp_path / "p.zip", include_gitignore=True, excludes=excludes)
    packed = {Path(name) for name in ZipFile(tmp_path / "p.zip").namelist() if not name.endswith("/")}
    assert packed == {path for path, _ in found.files}


class Recorder:
    """A job server that keeps what it is sent."""

    def submit_job(self, **job):
        self.job = job
        return "job-1"


def test_a_job_carries_no_secret(folder: Path, tmp_path: Path, monkeypatch, capsys):
    pytest.importorskip("ray.dashboard.modules.job.sdk")
    from rich.console import Console

    config, client = tmp_path / "a.yaml", Recorder()
    config.write_text(CONFIG)
    (folder / ".env").write_text("SECRET=hunter2")
    monkeypatch.setattr(module, "connect", lambda address: client)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    for words, passed_on in [
        ((), ["AWS_SECRET_ACCESS_KEY"]), ((), ["PLAIN=s3://user:hunter2@bucket"]), ((), ["MY_TOKEN=hunter2"]),
        (("storage.url=s3://user:hunter2@bucket/runs",), []), (("data.url=https://h/x?token=hunter2",), []),
    ]:  # fmt: skip
        with pytest.raises(ConfigError, match="on the nodes instead") as caught:
            submit(str(config), words, None, Console(), working_dir=str(folder), passed_on=passed_on)
        assert "hunter2" not in str(caught.value)
    assert not hasattr(client, "job")
    submit(str(config), (), None, Console(), working_dir=str(folder), passed_on=["OMP_NUM_THREADS=1"])
    assert "hunter2" not in str(client.job)
    assert client.job["runtime_env"]["env_vars"]["OMP_NUM_THREADS"] == "1"
    assert client.job["runtime_env"]["excludes"] == ["/.env"]
    said = capsys.readouterr().out
    assert "not uploaded, as they look like secrets: .env" in said
    assert "hunter2" not in said


def test_a_package_that_ray_would_refuse_is_refused_first(folder: Path):
    with pytest.raises(ConfigError, match="rayignore"):
        Package(folder, [(Path("huge"), MOST_BYTES + 1)]).check()


def test_no_folder_and_no_server_are_one_sentence_each(tmp_path: Path, monkeypatch):
    pytest.importorskip("ray.dashboard.modules.job.sdk")
    from ebmscale.terminal import Terminal

    path = tmp_path / "a.yaml"
    path.write_text(
        "run: {name: a}\ndata: {url: /data}\ntrain: {max_samples: 1}\nstorage: {url: /runs}\nray: {num_workers: 2}"
    )
    with pytest.raises(ConfigError, match="is not a folder"):
        submit(str(path), (), "http://127.0.0.1:9", Terminal(quiet=True), working_dir=str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"job server http://127\.0\.0\.1:9 cannot be used"):
        submit(str(path), (), "http://127.0.0.1:9", Terminal(quiet=True), working_dir=str(tmp_path))


@pytest.mark.parametrize("place", ["command", "configuration that stays behind"])
def test_no_secret_of_an_address_gets_into_the_jobs_command(tmp_path, place):
    text = CONFIG
    (tmp_path / "job").mkdir()
    file, words = tmp_path / "job" / "run.yaml", ["data.url=http://user:PASSW0RD@h/d"]
    if place != "command":
        file, words, text = tmp_path / "run.yaml", [], parse_config(text, words).dump().replace("***", "user:PASSW0RD")
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"data\.url holds a password, key or signature") as error:
        submit(str(file), words, "http://127.0.0.1:1", Terminal(quiet=True), working_dir=str(tmp_path / "job"))
    assert "PASSW0RD" not in str(error.value)
