"""Where the ranks of a round meet: a store that its first rank opens, and says where, before the others are started.

Standard library and torch only, Python >= 3.9.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist


def meet(say: Callable[..., None], job: dict[str, Any], timeout: timedelta) -> Any:
    """The store of `job`: the first rank's, on a port of the chosen address that nobody else can have."""
    address, port, ranks = job["address"], job["port"], job["ranks"]
    if job["rank"]:
        return dist.TCPStore(address, port, ranks, is_master=False, timeout=timeout)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # --port: the last round's is in TIME_WAIT
    listener.bind((address, port))
    listener.listen(min(4096, 2 * ranks + 16))
    port = listener.getsockname()[1]
    store = dist.TCPStore(
        address,
        port,
        ranks,
        is_master=True,
        timeout=timeout,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )
    say("store", address=address, port=port)
    return store
