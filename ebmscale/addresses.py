"""Addresses in a configuration that count from the folder where a command runs, made whole.

What is kept, or sent to another process, is read in other folders.
"""

import os

from ebmscale.config import RunConfig


def is_relative(address: str) -> bool:
    """Whether it is a folder or file that counts from the working directory."""
    return "://" not in address and not os.path.isabs(os.path.expanduser(address))


def absolute(address: str) -> str:
    """The address, from the working directory where it is relative."""
    return address if "://" in address else os.path.abspath(os.path.expanduser(address))


def with_addresses(config: RunConfig) -> RunConfig:
    """The configuration with every address in it absolute."""
    data = {
        name: absolute(value)
        for name in ("url", "source", "cache")
        if (value := getattr(config.data, name)) not in (None, "", "-")
    }
    storage = {"url": absolute(config.storage.url)}
    return config.model_copy(
        update={"data": config.data.model_copy(update=data), "storage": config.storage.model_copy(update=storage)}
    )
