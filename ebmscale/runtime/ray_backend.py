"""Makes torch's process group of the workers of a run, over the address by which Ray knows each machine.

By default Gloo binds to the address of the machine's name. On many machines that is 127.0.x.x, which other machines
cannot reach. So Gloo gets the name of the interface that has Ray's address. By default torch's store listens on all
interfaces and asks for no token. Here it listens on Ray's address alone, which is 127.0.0.1 for a Ray on loopback.
"""

import importlib
import os
import socket
from typing import Any

_LOOPBACK = ("127.0.0.1", "::1")
_stores: list[Any] = []  # kept until this process ends


def torch_config(timeout_s: int) -> Any:
    """Ray Train's `TorchConfig` with this backend.

    Args:
        timeout_s: limit of a collective operation in seconds.
    """
    from ray.train.torch import TorchConfig  # noqa: PLC0415

    base: type[Any] = TorchConfig().backend_cls

    class Backend(base):
        """Sets the interface and opens the store before Ray Train makes the process group."""

        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            at_ray: Any = importlib.import_module("ray.train.torch.config")
            worker_group.execute(use_own_interface)
            at_ray.get_address_and_port = open_store  # Ray's own function guesses a port that may be taken
            super().on_start(worker_group, backend_config)

    class Config(TorchConfig):
        """Selects this backend."""

        @property
        def backend_cls(self) -> type[Any]:
            return Backend

    return Config(timeout_s=timeout_s)


def use_own_interface() -> None:
    """Sets Gloo's interface to that of this machine's address, unless the user has set it; on loopback NCCL's too."""
    import psutil  # noqa: PLC0415 (comes with Ray)
    import ray  # noqa: PLC0415

    address = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == address and one.family in (socket.AF_INET, socket.AF_INET6) for one in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            if address in _LOOPBACK:
                os.environ.setdefault("NCCL_SOCKET_IFNAME", name)


def open_store() -> tuple[str, int]:
    """Opens torch's store on this machine's own address; this process makes the process group as rank 0.

    Returns:
        The address and the port of the store.
    """
    import ray  # noqa: PLC0415
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # noqa: PLC0415

    address = ray.util.get_node_ip_address()
    listening = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    listening.bind((address, 0))
    port = listening.getsockname()[1]
    # with `multi_tenant` a process has one server for each port, so the process group uses this one
    store = TCPStore(
        address, port, is_master=True, wait_for_workers=False, multi_tenant=True, master_listen_fd=listening.detach()
    )
    _stores.append(store)
    return address, port
