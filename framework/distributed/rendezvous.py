"""Where ranks find each other."""

from __future__ import annotations

import socket

LOCAL = "127.0.0.1"
"""Reached from this machine alone."""


class Rendezvous:
    """A key-value store of torch.distributed that the driver keeps, so that no rank has to be there first and no port is taken
    between its choice and its use. Ranks open ``TCPStore(host, port, is_master=False)``. address: host:port.

    port: 0 = a free one. host: of this machine, as ranks reach it. Raises ValueError for a port that is in use."""

    def __init__(self, port: int, host: str) -> None:
        from torch.distributed import TCPStore

        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # that of an engine which ended a moment ago is free
        try:
            listener.bind((host, port))
        except OSError as error:
            reason = f"{error.strerror}; give another, or 0 for any that is free"
            raise ValueError(f"parallel.port={port} cannot work: {reason}") from None
        listener.listen()
        number = listener.getsockname()[1]
        self._store: TCPStore | None = TCPStore(
            host, number, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
        )
        self.address = f"{host}:{number}"

    def close(self) -> None:
        """Frees the port."""
        self._store = None
