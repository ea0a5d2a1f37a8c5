"""How Ray Train joins the workers of a run: torch's process group over each machine's own address.

Gloo binds to what the machine's name resolves to, which on many machines is 127.0.x.x and reaches nobody; so the
interface that has the address by which Ray knows the machine is named to it.
"""

import os
import socket
from typing import Any


def torch_config(timeout_s: int) -> Any:
    """Ray Train's `TorchConfig` with that.

    Args:
        timeout_s: seconds that a collective operation may take.
    """
    from ray.train.torch import TorchConfig  # noqa: PLC0415

    base: type[Any] = TorchConfig().backend_cls

    class Backend(base):
        """Names the interface before the process group is made."""

        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            worker_group.execute(use_own_interface)
            super().on_start(worker_group, backend_config)

    class Config(TorchConfig):
        """Takes this backend."""

        @property
        def backend_cls(self) -> type[Any]:
            return Backend

    return Config(timeout_s=timeout_s)


def use_own_interface() -> None:
    """Names the interface of this machine's address to Gloo, unless the user has."""
    import psutil  # noqa: PLC0415 (comes with Ray)
    import ray  # noqa: PLC0415

    address = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == address and one.family in (socket.AF_INET, socket.AF_INET6) for one in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
