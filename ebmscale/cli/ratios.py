"""The command on sets of samples: their density ratio, and what it tells."""

import io
import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

import click
import numpy as np
from numpy.typing import ArrayLike

from ebmscale.address import Address
from ebmscale.cli.group import Count, NumberRange, cli, console, example, seed_option
from ebmscale.cli.outputs import ADDRESS, OutputFile, output_file
from ebmscale.cli.progress import Steps
from ebmscale.errors import ConfigError, DataError, Interrupted
from ebmscale.stop import StopSignal

if TYPE_CHECKING:
    from ebmscale.ratios import FitSettings, FittedRatio, StageRow
    from ebmscale.ratios.watch import Watch

Base = Literal["auto", "samples", "gaussian", "normal"]


@cli.command(epilog=example("ebmscale ratio before.npy after.npy --out ratio.npz"))
@click.argument("p", type=ADDRESS)
@click.argument("q", type=ADDRESS)
@click.option(
    "--base",
    type=click.Choice(["auto", "samples", "gaussian", "normal"]),
    default="auto",
    show_default=True,
    help="auto: samples where p's samples reach q, else gaussian. samples: p is its samples alone. "
    "gaussian: through the Gaussian with p's moments. normal: p is N(0, I).",
)
@click.option("--test", is_flag=True, help="Test whether P and Q come from one distribution, and print a p-value.")
@click.option(
    "--score",
    type=ADDRESS,
    metavar="FILE",
    help="Learn q alone, and score the rows of FILE by -log q, with a p-value for each row.",
)
@click.option(
    "--quadratic/--no-quadratic", default=True, show_default=True, help="Add a quadratic head to the perceptron."
)
@click.option(
    "--hidden", default="128,128", show_default=True, help="Widths of the hidden layers, with commas; '' is none."
)
@click.option(
    "--waves",
    type=Count(0),
    default=0,
    show_default=True,
    help="Sines as further inputs of the perceptron: for sharp densities in few dimensions.",
)
@click.option("--max-stages", type=Count(1), default=8, show_default=True, help="Largest number of stages.")
@click.option(
    "--budget-s",
    type=NumberRange(0, min_open=True),
    metavar="SECONDS",
    help="End the fit after about this time, with the stages that are done by then (default: no limit).",
)
@seed_option
@click.option(
    "--out",
    type=ADDRESS,
    help="FILE.npz for log q - log p at all samples; FILE.json is written beside it. With --score: FILE.npz for the "
    "scores (default: beside FILE, as FILE.scores.npz).",
)
def ratio(
    p: Address,
    q: Address,
    base: Base,
    test: bool,
    score: Address | None,
    quadratic: bool,
    hidden: str,
    waves: int,
    max_stages: int,
    budget_s: float | None,
    seed: int,
    out: Address | None,
) -> None:
    """Fit log q - log p to the samples in P and Q.

    P and Q are .npy or .npz files or packed sets, of whose posteriors one latent each is drawn. The KL divergence of q
    from p is estimated too. With --base normal p is the standard normal. With --base normal and with --score, P is not
    read: write - for it.

    --test asks whether P and Q come from one distribution. One half of the samples trains a ratio, the other half
    is tested. --score asks which rows of FILE are unlike the samples in Q.

    Ctrl-C and SIGTERM end the fit early: what is learned by then is printed and written, and the exit code is 130.
    """
    from ebmscale.ratios import FitSettings  # noqa: PLC0415 (commands import what they use)

    if hidden and not re.fullmatch(r" *-?[0-9]+ *(, *-?[0-9]+ *)*", hidden):
        raise ConfigError(f"--hidden {hidden} must be numbers with commas, such as 128,128.")
    widths = tuple(map(int, hidden.split(","))) if hidden else ()
    settings = FitSettings(
        hidden=widths, waves=waves, quadratic=quadratic, max_stages=max_stages, budget_s=budget_s or math.inf
    )
    _check_choices(p, q, base, test, score, out)
    if test:
        _test(p, q, settings, seed)
    elif score is not None:
        _score(q, score, settings, seed, out)
    else:
        _fit(p, q, base, settings, seed, out)


def _check_choices(p: Address, q: Address, base: str, test: bool, score: Address | None, out: Address | None) -> None:
    """Refuses options that exclude each other."""
    if test and score is not None:
        raise ConfigError("--test and --score answer different questions; give one of them.")
    if (test or score is not None) and base != "auto":
        raise ConfigError(f"--base {base} has no meaning with {'--test' if test else '--score'}; leave it out.")
    if out is not None and any(_same(out, one) for one in (p, q, score) if one is not None):
        raise ConfigError(f"--out {out} is a file that is read; give it another name.")
    if test and out is not None:
        raise ConfigError("--test writes no file; leave out --out.")
    if score is not None and p != "-":
        raise ConfigError(f"With --score, P is not read: write - in place of {p}.")


def _same(one: Address, other: Address) -> bool:
    """Whether two arguments name one file."""
    if one.is_local and other.is_local:
        return os.path.realpath(one.real) == os.path.realpath(other.real)
    return one.real == other.real


def _fit(p: str, q: str, base: Base, settings: "FitSettings", seed: int, out: str | None) -> None:
    """Fits the ratio, prints it, and writes it where `--out` says."""
    from ebmscale.density.prior import StandardNormal  # noqa: PLC0415
    from ebmscale.ratios import fit_ratio  # noqa: PLC0415
    from ebmscale.ratios.read import read_array, read_samples  # noqa: PLC0415

    target = output_file(out, (".npz",), (".json",)) if out is not None else None
    console.print(
        f"fitting the ratio of {q} to {'N(0, I)' if base == 'normal' else p}; every stage is a line, and Ctrl-C ends "
        "the fit with the stages that are done"
    )
    sets: dict[str, ArrayLike]
    with Steps("reading the samples"):
        if base == "normal":
            samples = read_samples(q, "q")
            sets = {"log_ratio_q": samples}
        else:
            sets = {"log_ratio_q": read_array(q), "log_ratio_p": read_array(p)}
    with _watched("fit") as (watch, stop):

        def progress(row: "StageRow") -> None:
            console.print(_stage_line(row, watch.side))

        if base == "normal":
            p_0 = StandardNormal(math.prod(samples.shape[1:]))
            fitted = fit_ratio(p_0, samples, settings=settings, seed=seed, progress=progress, watch=watch)
        else:
            p_and_q = sets["log_ratio_p"], sets["log_ratio_q"]
            fitted = fit_ratio(*p_and_q, base=base, settings=settings, seed=seed, progress=progress, watch=watch)
        arrays = {name: fitted.log_ratio(rows).numpy() for name, rows in sets.items()} if target is not None else {}
    _say(fitted.lines())
    if target is not None:
        _write(target, arrays, _about(fitted))
        console.print(f"log ratios in {target.address}")
    _end(stop)


@contextmanager
def _watched(name: str) -> Iterator[tuple["Watch", StopSignal]]:
    """A watch that shows what a fit does, and ends it at a signal."""
    from ebmscale.ratios.watch import Watch  # noqa: PLC0415

    stop = StopSignal()
    with Steps(name) as steps, stop.listening():

        def say(what: str) -> None:
            steps.say(f"{watch.side}, {what}" if watch.side else what)

        watch = Watch(stop, say)
        yield watch, stop


def _end(stop: StopSignal) -> None:
    """Ends the command if it was asked to stop.

    Raises:
        Interrupted: it was.
    """
    if stop.name is not None:
        raise Interrupted(f"interrupted by {stop.name}; the result above is that of the stages that were done.")


def _test(p: str, q: str, settings: "FitSettings", seed: int) -> None:
    """Prints whether P and Q differ."""
    from ebmscale.ratios import two_sample_test  # noqa: PLC0415
    from ebmscale.ratios.read import read_array  # noqa: PLC0415

    console.print(f"testing whether {p} and {q} differ")
    with Steps("reading the samples"):
        of_p, of_q = read_array(p), read_array(q)
    with _watched("test") as (watch, stop):
        found = two_sample_test(of_p, of_q, settings=settings, seed=seed, watch=watch)
    _say(found.lines())
    _end(stop)


def _score(q: str, file: Address, settings: "FitSettings", seed: int, out: str | None) -> None:
    """Writes and summarises how strange the rows of a file are beside the samples in Q."""
    from ebmscale.ratios import OutOfDistribution  # noqa: PLC0415
    from ebmscale.ratios.read import read_array  # noqa: PLC0415
    from ebmscale.ratios.samples import as_points, as_samples  # noqa: PLC0415

    target = output_file(out if out is not None else _beside(file), (".npz",), (".json",))
    console.print(f"learning the density of {q}, by which {file} is scored")
    with Steps("reading the samples"):
        samples, rows = read_array(q), read_array(file)
        if not len(as_points(rows, as_samples(samples, "q").shape[1:], file)):  # checked before the long fit
            raise DataError(f"{file} has no rows to score.")
    with _watched("fit") as (watch, stop):
        judge = OutOfDistribution.fitted(samples, settings=settings, seed=seed, watch=watch)
        found = judge.judge(rows)
    about = {"fit": _about(judge.ratio), "held_out": len(judge.held_out), "rows": len(rows)}
    _write(target, {"score": found.score.numpy(), "p_value": found.p_value.numpy()}, about)
    incomplete = [f"the fit is not complete: {judge.ratio.stopped}"] if judge.ratio.stopped is not None else []
    _say([*found.lines(), *incomplete, f"scores in {target.address}"])
    _end(stop)


def _beside(file: Address) -> Address:
    """The address FILE.scores.npz beside FILE.npy, FILE.npz or the set FILE."""
    if file.is_web:
        raise ConfigError(f"Nothing can be written beside {file}; give the file for the scores with --out.")
    ending = file.suffix if file.suffix in (".npy", ".npz") else ""
    return Address(f"{file.real.rstrip('/').removesuffix(ending)}.scores.npz")


def _say(lines: list[str]) -> None:
    for line in lines:
        console.print(line)


def _stage_line(row: "StageRow", side: str) -> str:
    bound = f"{row.evidence.kl_bound:.4f} ± {row.evidence.kl_bound_error:.4f}"
    numbers = f"held-out loss {row.evidence.loss:.4f}, KL bound {bound}, gain {row.gain:.3f}"
    numbers += f", power {row.power:.3f}" if row.power != 1 else ""
    of_side = f"{side}, " if side else ""
    return f"{of_side}stage {row.stage}, {row.updates:,} updates: {numbers} ({row.reason})"


def _about(fitted: "FittedRatio") -> dict[str, Any]:
    return {
        "kl": fitted.kl,
        "kl_error": fitted.kl_error,
        "interval": fitted.interval,
        "warning": fitted.warning,
        "stopped": fitted.stopped,
        "log_z": fitted.normaliser.log_z,
        "log_z_error": fitted.normaliser.error,
        "effective": fitted.effective,
        "through_gaussian": fitted.reference is not None,
        "calibration": asdict(fitted.calibration),
        "stages": [asdict(row) for row in fitted.stages],
    }


def _write(target: OutputFile, arrays: dict[str, np.ndarray], about: dict[str, Any]) -> None:
    """Writes the arrays, and the JSON beside them."""
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
    target.publish(content.getvalue())
    target.publish(json.dumps(about, indent=1).encode(), ".json")
