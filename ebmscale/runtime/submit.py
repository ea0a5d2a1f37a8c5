"""Submits a run to a Ray cluster as a job, follows its log across lost connections, and returns its exit code."""

import asyncio
import contextlib
import os
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ebmscale.config import RunConfig, load_config
from ebmscale.config.presets import file_of
from ebmscale.errors import ConfigError, Interrupted, WorkersLostError
from ebmscale.runtime.exposure import check_configuration, check_variable
from ebmscale.runtime.package import examine_folder
from ebmscale.runtime.ray_access import answer_refusal
from ebmscale.runtime.ray_session import INSTALL, import_ray, is_refusal, refusal_sentence
from ebmscale.terminal import Terminal

UNREACHABLE_S = 600.0  # after this time without the job server, following ends; the job continues
LONGEST_PAUSE_S = 15.0
SHOWN_FILES = 5
STOP_MARGIN_S = 60  # `ray job stop` waits this much longer than checkpoint.grace_s
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


def submit(
    config_file: str,
    overrides: Sequence[str],
    address: str | None,
    console: Terminal,
    *,
    working_dir: str = ".",
    passed_on: Sequence[str] = (),
    all_ranks: bool = False,
) -> tuple[Any, str]:
    """Checks the configuration here, uploads the working directory and submits the job; the job checks its nodes.

    Args:
        config_file: of the run.
        overrides: `key=value`.
        address: of the cluster's job server; without it RAY_API_SERVER_ADDRESS or RAY_ADDRESS is used.
        console: shows progress.
        working_dir: the folder to upload.
        passed_on: names of variables of this environment that the job gets, or NAME=VALUE; secrets are refused.
        all_ranks: whether to show ranks other than the first as well.

    Returns:
        The client, and the job's submission id.

    Raises:
        ConfigError: the configuration, the folder or the cluster cannot be used, or the job would reveal a secret.
    """
    import_ray()
    config, path = load_config(config_file, overrides), file_of(config_file, "")
    _check(config)
    text = path.read_text()
    check_configuration(config.model_dump(), text, [*overrides])
    variables = _variables(passed_on)
    package = examine_folder(Path(working_dir))
    console.print(f"uploading {package.folder}: {package.summary()}")
    if package.withheld:
        names = ", ".join(str(file) for file in package.withheld[:SHOWN_FILES])
        more = f" and {len(package.withheld) - SHOWN_FILES} more" if len(package.withheld) > SHOWN_FILES else ""
        console.print(
            f"not uploaded, as they look like secrets: {names}{more}; put those that the job needs on the nodes"
        )
    package.check()
    client = connect(address)
    words = [*overrides, *(["--all-ranks"] if all_ranks else [])]
    if package.holds(path):
        entrypoint = _command(str(path.resolve().relative_to(package.folder.resolve())), words)
    else:  # the file is not uploaded, so the command carries its text
        entrypoint = f"printf %s {shlex.quote(text)} | {_command('/dev/stdin', words)}"
    variables["RAY_JOB_STOP_WAIT_TIME_S"] = str(int(config.checkpoint.grace_s) + STOP_MARGIN_S)
    environment = {"working_dir": str(package.folder), "excludes": package.excludes, "env_vars": variables}
    try:
        job = client.submit_job(entrypoint=entrypoint, runtime_env=environment)
    except Exception as error:
        raise _unusable(address, error) from error
    console.print(f"job {job} is submitted; its log follows, and `ebmscale submit --attach {job}` shows it again")
    return client, job


def connect(address: str | None) -> Any:
    """A client of the cluster's job server.

    Raises:
        ConfigError: ray[default] is missing, nobody answers, or the token is refused.
    """
    import_ray()
    try:
        from ray.job_submission import JobSubmissionClient  # noqa: PLC0415

        try:
            return JobSubmissionClient(address)
        except Exception as error:
            if not is_refusal(error) or not answer_refusal():
                raise
            return JobSubmissionClient(address)
    except ImportError as error:
        raise ConfigError(f"Jobs need ray[default] ({error}); install it: {INSTALL}.") from None
    except Exception as error:
        raise _unusable(address, error) from error


def follow(client: Any, job: str, write: Callable[[str], object], patience_s: float = UNREACHABLE_S) -> int:
    """Writes the job's log as it grows until the job ends; connects again whenever the connection is lost.

    Returns:
        The exit code of the job; 130 if it was stopped.

    Raises:
        Interrupted: a signal stopped this process; the job continues.
        WorkersLostError: the job server cannot be reached, or does not know the job.
    """
    try:
        return _follow(client, job, _Log(write), patience_s)
    except KeyboardInterrupt:
        raise Interrupted(
            f"Stopped following the log; the job continues: `ebmscale submit --attach {job}` follows it again, "
            f"`ray job stop {job}` ends it with a checkpoint."
        ) from None


def _follow(client: Any, job: str, log: "_Log", patience_s: float) -> int:
    """`follow` without the handling of KeyboardInterrupt."""
    pause_s, reached = 0.5, time.monotonic()
    while True:
        with contextlib.suppress(Exception):  # the connection is lost; the status below shows whether the job has ended
            asyncio.run(_tail(client, job, log))
        try:
            info = client.get_job_info(job)
            reached, pause_s = time.monotonic(), 0.5
            if str(info.status.value) in _ENDED:
                log.take(client.get_job_logs(job), 0)
                return _exit_code(info)
        except Exception as error:
            if "does not exist" in str(error) or "404" in str(error):
                raise WorkersLostError(
                    f"The cluster knows no job {job}: it may be a new cluster; submit the run again to resume it."
                ) from error
            if time.monotonic() - reached > patience_s:
                raise WorkersLostError(
                    f"The job server could not be reached for {patience_s:.0f} s; the job may still run: "
                    f"`ebmscale submit --attach {job}` follows it again."
                ) from error
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


class _Log:
    """Writes a job's log once, although every connection sends it from the beginning."""

    def __init__(self, write: Callable[[str], object]):
        self._write = write
        self._written = 0

    def take(self, text: str, start: int) -> int:
        """Writes the new part of a text that begins at character `start`; returns the character at which it ends."""
        fresh = text[max(0, self._written - start) :]
        if fresh:
            self._write(fresh)
            self._written = start + len(text)
        return start + len(text)


async def _tail(client: Any, job: str, log: _Log) -> None:
    """Writes the log that one connection sends."""
    end = 0
    async for text in client.tail_job_logs(job):
        end = log.take(text, end)


def _exit_code(info: Any) -> int:
    status = str(info.status.value)
    if status == "SUCCEEDED":
        return 0
    if status == "STOPPED":
        return Interrupted.exit_code
    return int(info.driver_exit_code or WorkersLostError.exit_code)


def _command(config: str, words: Sequence[str]) -> str:
    return shlex.join(["python", "-m", "ebmscale", "train", config, *words])


def _check(config: RunConfig) -> None:
    """Refuses settings that cannot work on another machine."""
    if not config.ray.num_workers:
        raise ConfigError(
            "ray.num_workers is 0, which trains in one process; give the job some workers, such as ray.num_workers=2."
        )
    for key, url in (("storage.url", config.storage.url), ("data.url", config.data.url)):
        if url.is_local and not Path(url.real).expanduser().is_absolute():
            raise ConfigError(
                f"{key} is {url}, which in a job is in a temporary folder of one machine; "
                f"use an address that every node reaches, such as {key}=s3://BUCKET/PATH."
            )


def _variables(passed_on: Sequence[str]) -> dict[str, str]:
    variables = {}
    for word in passed_on:
        name, equals, value = word.partition("=")
        if not equals and name not in os.environ:
            raise ConfigError(
                f"--env {name}: this environment has no such variable; set it, or use --env {name}=VALUE."
            )
        variables[name] = value if equals else os.environ[name]
        check_variable(name, variables[name])
    return variables


def _unusable(address: str | None, error: Exception) -> ConfigError:
    if is_refusal(error):
        return ConfigError(refusal_sentence(address))
    text = " ".join(str(error).split())[:300].rstrip(".")
    return ConfigError(
        f"The job server {address or 'of RAY_ADDRESS'} cannot be used ({text or type(error).__name__}); check "
        "--address: it must be that of the dashboard, such as http://HEAD:8265."
    )
