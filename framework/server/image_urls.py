"""Images that clients name by URL: in it, or fetched from a host that the server trusts."""

from __future__ import annotations

import base64
import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from typing import Any, TypeGuard
from urllib.parse import SplitResult, urlsplit

from ..engine.images import image_from_url


class ImageURLs:
    """hosts: those that images are fetched from; empty: none are. max_bytes, timeout_s: of one image, from the first connection
    to its last byte."""

    def __init__(self, hosts: Sequence[str], max_bytes: int, timeout_s: float) -> None:
        self._hosts, self._max_bytes, self._timeout_s = frozenset(host.lower() for host in hosts), max_bytes, timeout_s

    def load(self, url: object) -> Any:
        """A PIL image; slow where it is fetched. Raises ValueError for what is none, and for URLs that nothing is fetched from."""
        if not is_fetched(url):
            return image_from_url(url, still=True)
        data = self._fetch(self._checked(url))
        return image_from_url("data:image/any;base64," + base64.b64encode(data).decode(), still=True)

    def _checked(self, url: str) -> SplitResult:
        try:
            parts = urlsplit(url)
            host = parts.hostname or ""
            _ = parts.port
        except ValueError as error:
            raise ValueError(f"the URL {url[:80]!r} of an image cannot be read: {error}") from None
        if host.lower() not in self._hosts:
            known = ", ".join(sorted(self._hosts)) or "none; start the server with --allowed-image-hosts, or send data: URLs"
            raise ValueError(f"images are not fetched from {host[:80]!r}: a client may name {known}")
        if parts.username is not None or not url.isascii() or any(ord(character) <= 32 for character in url):
            raise ValueError(f"the URL {url[:80]!r} of an image cannot be fetched: it must be plain ASCII, without a user's name")
        return parts

    def _fetch(self, parts: SplitResult) -> bytes:
        host, is_secure = parts.hostname or "", parts.scheme.lower() == "https"
        open_sockets: list[socket.socket] = []

        def end() -> None:
            for sock in open_sockets:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

        watch, deadline = threading.Timer(self._timeout_s, end), time.monotonic() + self._timeout_s
        watch.daemon = True
        watch.start()
        try:
            sock = self._connect(host, parts.port or (443 if is_secure else 80), is_secure, open_sockets)
            with contextlib.closing(sock):
                data = self._read(sock, host, (parts.path or "/") + (f"?{parts.query}" if parts.query else ""))
            if time.monotonic() >= deadline:
                raise TimeoutError(f"it did not arrive within {self._timeout_s:g} s")
            return data
        except (OSError, http.client.HTTPException) as error:
            raise ValueError(f"an image cannot be fetched from {host}: {type(error).__name__}: {str(error)[:200]}") from error
        finally:
            watch.cancel()

    def _connect(self, host: str, port: int, is_secure: bool, open_sockets: list[socket.socket]) -> socket.socket:
        """To an address that was looked at, so that a name cannot lead elsewhere the second time."""
        addresses = [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        if hidden := [address for address in addresses if not is_public(address)]:
            raise ValueError(f"images are not fetched from {host}, which is at {hidden[0]}: only public addresses are")
        sock = socket.create_connection((addresses[0], port), timeout=self._timeout_s)
        open_sockets.append(sock)
        if not is_secure:
            return sock
        secure = ssl.create_default_context().wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
        open_sockets.append(secure)
        secure.do_handshake()
        return secure

    def _read(self, sock: socket.socket, host: str, target: str) -> bytes:
        connection = http.client.HTTPConnection(host)
        connection.sock = sock
        connection.request("GET", target, headers={"Accept": "image/*", "Connection": "close"})
        response = connection.getresponse()
        if response.status != 200:  # a redirect leads to where nobody looked
            raise ValueError(f"{host} answers {response.status} for an image; 200 is expected, and redirects are not followed")
        data = response.read(self._max_bytes + 1)
        if len(data) > self._max_bytes:
            raise ValueError(f"an image from {host} is longer than the {self._max_bytes} bytes that are fetched")
        return data


def is_fetched(url: object) -> TypeGuard[str]:
    """Whether a URL names something elsewhere."""
    return isinstance(url, str) and url.lower().startswith(("http://", "https://"))


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, also where it is written as an IPv6 address for an IPv4 one."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo[1] if found.teredo else None)
        if inner is not None:
            return is_public(str(inner))
        if found in ipaddress.ip_network("64:ff9b::/96"):
            return is_public(str(ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)))
    hidden = found.is_multicast or found.is_reserved or (isinstance(found, ipaddress.IPv6Address) and found.is_site_local)
    return found.is_global and not hidden
