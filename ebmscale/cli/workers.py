"""The options of commands whose work several workers share."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from ebmscale.cli.group import Count
from ebmscale.errors import ConfigError

if TYPE_CHECKING:
    from ebmscale.runtime.part_job import Workers


def worker_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options `num_workers` and `ray_address`."""
    ray = click.option(
        "--ray",
        "ray_address",
        metavar="ADDRESS",
        help="Workers are those of the Ray cluster at ADDRESS; auto: of the one that runs on this machine.",
    )
    num = click.option(
        "--workers",
        "num_workers",
        type=Count(1),
        metavar="N",
        help="N workers share the work: processes of this machine, or of the cluster with --ray. After an "
        "interruption the same command continues. If a worker is lost, only its part is done again.",
    )
    return num(ray(command))


def workers_of(num_workers: int | None, ray_address: str | None, device: str = "cpu") -> "Workers | None":
    """The workers that the options name; None if they name none.

    Raises:
        ConfigError: a cluster without a number of workers.
    """
    from ebmscale.runtime.part_job import Workers  # noqa: PLC0415 (commands import what they use)

    if ray_address is not None and num_workers is None:
        raise ConfigError("--ray needs the number of workers; give --workers N.")
    return None if num_workers is None else Workers(num_workers, ray_address, on_gpu=device != "cpu")
