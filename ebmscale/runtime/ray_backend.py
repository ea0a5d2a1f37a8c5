"""How Ray Train joins the workers of a run: torch's process group over each machine's own address.

Gloo binds to what the machine's name resolves to, which on many machines is 127.0.x.x and reaches nobody; so the
interface that has the address by which Ray knows the machine is named to it. torch's store listens on all interfaces
and knows no token; here it listens on that address alone, which is 127.0.0.1 for a Ray on loopback.
"""

import importlib
import os
import socket
from typing import Any

_LOOPBACK = ("127.0.0.1", "::1")
_stores: list[Any] = []  # of this process, which end with it


def torch_config(timeout_s: int) -> Any:
    """Ray Train's `TorchConfig` with that.

    Args:
        timeout_s: seconds that a collective operation may take.
    """
    from ray.train.torch import TorchConfig  # noqa: PLC0415

    base: type[Any] = TorchConfig().backend_cls

    class Backend(base):
        """Names the interface and opens the store before the process group is made."""

        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            at_ray: Any = importlib.import_module("ray.train.torch.config")
            worker_group.execute(use_own_interface)
            at_ray.get_address_and_port = open_store  # Ray's own only guesses a port that may be free
            super().on_start(worker_group, backend_config)

    class Config(TorchConfig):
        """Takes this backend."""

        @property
        def backend_cls(self) -> type[Any]:
            return Backend

    return Config(timeout_s=timeout_s)


def use_own_interface() -> None:
    """Names the interface of this machine's address to Gloo, unless the user has; on loopback to NCCL too."""
    import psutil  # noqa: PLC0415 (comes with Ray)
    import ray  # noqa: PLC0415

    address = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == address and one.family in (socket.AF_INET, socket.AF_INET6) for one in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            if address in _LOOPBACK:
                os.environ.setdefault("NCCL_SOCKET_IFNAME", name)


def open_store() -> tuple[str, int]:
    """Opens torch's store on this machine's own address, for the process group that this process makes as rank 0.

    Returns:
        Its address and port.
    """
    import ray  # noqa: PLC0415
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # noqa: PLC0415

    address = ray.util.get_node_ip_address()
    listening = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    listening.bind((address, 0))
    port = listening.getsockname()[1]
    # a process has one server for a port (`multi_tenant`): the process group finds this one and opens no other
    store = TCPStore(
        address, port, is_master=True, wait_for_workers=False, multi_tenant=True, master_listen_fd=listening.detach()
    )
    _stores.append(store)
    return address, port
