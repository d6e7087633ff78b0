"""Ports for what a test starts a moment later.

Whoever asks the kernel for any port gets one from 32768 on: one of those that was free just now may be some client's a moment
later. These lie below, in a block that no other process has, and come round again after all others of it.
"""

from __future__ import annotations

import functools
import itertools
import socket
from collections.abc import Iterator

FIRST, LAST, BLOCK = 10_000, 15_000, 100


@functools.cache
def _block() -> tuple[socket.socket, Iterator[int]]:
    """This process's ports, and what keeps others from them: an abstract name, gone with the process (unix(7))."""
    for first in range(FIRST, LAST, BLOCK):
        name = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            name.bind(f"\0hasnmp-test-ports-{first}")
        except OSError:
            name.close()
            continue
        return name, itertools.cycle(range(first, first + BLOCK))
    raise AssertionError(f"every block of ports from {FIRST} to {LAST} is another process's")


def free_port(address: str = "127.0.0.1") -> int:
    """One that nobody has at this address, neither for datagrams nor for streams. "::": at none."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for port in itertools.islice(_block()[1], BLOCK):
        try:
            for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                with socket.socket(family, kind) as trial:
                    trial.bind((address, port))
        except OSError:
            continue
        return port
    raise AssertionError(f"no port of this process's is free at {address}")
