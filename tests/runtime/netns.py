"""Two hosts on a cable, as network namespaces, for the tests in this folder."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count()


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Cable:
    """Namespaces `server` (192.0.2.1, 2001:db8::1, interface srv0) and `client` (192.0.2.2, 2001:db8::2, cli0)."""

    def __init__(self) -> None:
        tag = f"{os.getpid()}x{next(_numbers)}"
        self.server, self.client = f"hs{tag}", f"hc{tag}"
        for name in (self.server, self.client):
            ip("netns", "add", name)
        ip("link", "add", "srv0", "netns", self.server, "type", "veth", "peer", "name", "cli0", "netns", self.client)
        for name, link, last in ((self.server, "srv0", 1), (self.client, "cli0", 2)):
            ip("-n", name, "addr", "add", f"192.0.2.{last}/24", "dev", link)
            ip("-n", name, "addr", "add", f"2001:db8::{last}/64", "dev", link, "nodad")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", link, "up")

    def turned(self) -> Cable:
        """The same cable with the two names exchanged."""
        other = object.__new__(Cable)
        other.server, other.client = self.client, self.server
        return other

    def remove(self) -> None:
        for name in (self.server, self.client):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)

    def run(self, name: str, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["ip", "netns", "exec", name, *words], check=False, capture_output=True, text=True)


@contextlib.contextmanager
def inside(name: str) -> Iterator[None]:
    """The calling thread is in the namespace; sockets made here stay in it."""
    with Path("/proc/thread-self/ns/net").open() as home, Path(f"/run/netns/{name}").open() as there:
        if _LIBC.setns(there.fileno(), 0):
            raise OSError(ctypes.get_errno(), name)
        try:
            yield
        finally:
            if _LIBC.setns(home.fileno(), 0):
                raise OSError(ctypes.get_errno(), "home namespace")


class Probe:
    """A UDP echo between client and server at an address that the server may or may not have."""

    def __init__(self, cable: Cable, address: str) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with inside(cable.server):
            self.server = socket.socket(family, socket.SOCK_DGRAM)
            self.server.setsockopt(socket.IPPROTO_IP, 15, 1)  # IP_FREEBIND
            self.server.bind((address, 7))
        with inside(cable.client):
            self.client = socket.socket(family, socket.SOCK_DGRAM)
        self.server.setblocking(False)
        self.client.settimeout(0.004)
        self.address = address

    def answers(self) -> bool:
        """Does the address answer now (within 4 ms)?"""
        for sock in (self.client, self.server):
            with contextlib.suppress(BlockingIOError, TimeoutError):
                while True:
                    sock.recv(16, socket.MSG_DONTWAIT)
        try:
            self.client.sendto(b"?", (self.address, 7))
        except OSError:
            return False
        for _ in range(2):
            try:
                data, peer = self.server.recvfrom(16)
                self.server.sendto(data, peer)
            except (BlockingIOError, PermissionError):
                pass
            except OSError as error:  # the address that it is bound to went in between
                if error.errno != errno.ENETUNREACH:
                    raise
            with contextlib.suppress(OSError):
                return bool(self.client.recv(16))
        return False

    def close(self) -> None:
        self.server.close()
        self.client.close()
