"""Who looks on while a stack is disturbed: a client with one open connection, and an ear on the wire for heartbeats."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import sys
import threading
import time

from tests.cluster.control import control
from tests.cluster.lab import HERE, Lab, wait_for
from tests.cluster.pair import PYTHON, VIP
from tests.cluster.watch import longest_ms
from tests.runtime.netns import inside

MS = 1_000_000
STREAM_PORT = 7001
HEARTBEAT_PORT = 5405
SO_TIMESTAMPNS = 35
ETH_P_ALL = 3  # the bridge takes a port's frames before any other kind of listener has them
# A service for Group.more: a TCP server at the group's address.
STREAM = f"""      - name: web-stream
        agent: exec
        options: {{command: [{", ".join((*PYTHON, str(HERE / "stream_echo.py"), f'"{VIP}"', f'"{STREAM_PORT}"'))}]}}
        check: {{every_ms: 1000}}
"""


class Connection:
    """One TCP connection of the client, held open: something is sent and comes back every 10 ms. Use as a context manager."""

    def __init__(self, lab: Lab, address: str = VIP) -> None:
        self.answers_ns: list[int] = []
        self.failure = ""
        control()  # it must have been there before anything is judged by it
        self._lines: list[str] = []
        self._process = lab["client"].spawn(
            sys.executable, "-I", "-S", str(HERE / "talker.py"), address, str(STREAM_PORT),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, log="talker",
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        wait_for(lambda: self._lines, 10, "the client of the stream connects, or says why not")
        assert self._lines[0] == "connected", self._lines[0]

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait(12)
        self._reader.join(30)

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            word, _, rest = line.decode().rstrip("\n").partition(" ")
            if word == "got":
                self.answers_ns.append(int(rest.split()[1]))
            else:
                self._lines.append(f"{word} {rest}".rstrip())
                if word == "failed":
                    self.failure = f"after {len(self.answers_ns)} answers: {rest}"

    def worst_ms(self, since_ns: int) -> float:
        """The longest time between two answers since a moment, without what the machine itself stood still; fails if the
        connection is not whole."""
        assert not self.failure, self.failure
        times = [since_ns, *(ns for ns in list(self.answers_ns) if ns >= since_ns), time.monotonic_ns()]
        return longest_ms(times)


class Ear:
    """Hears every heartbeat that a host sends on a link, at the bridge's port. Use as a context manager."""

    def __init__(self, lab: Lab, host: str, link: str = "lan") -> None:
        with inside(lab.bridges):
            self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
            self._sock.bind((f"{host}-{link}", ETH_P_ALL))
        self._sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self._sock.settimeout(0.2)
        self._from = socket.inet_aton({"a": "192.0.2.11", "b": "192.0.2.12"}[host])
        self.heard_ns: list[int] = []
        self._stopped = False
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def __enter__(self) -> Ear:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        self._thread.join(2)
        self._sock.close()

    def _listen(self) -> None:
        while not self._stopped:
            with contextlib.suppress(TimeoutError):
                frame, extra, _, _ = self._sock.recvmsg(4096, 64)
                udp = 14 + 4 * (frame[14] & 15)
                if frame[26:30] == self._from and int.from_bytes(frame[udp + 2 : udp + 4], "big") == HEARTBEAT_PORT:
                    seconds, rest = struct.unpack("qq", extra[0][2])  # the kernel's word: this thread may be late
                    offset_ns = min(-time.time_ns() + time.monotonic_ns() for _ in range(3))
                    self.heard_ns.append(seconds * 1_000_000_000 + rest + offset_ns)

    def first_after(self, ns: int, seconds: float = 5) -> int:
        """When the first heartbeat after a moment was heard; waits for it."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for heard in list(self.heard_ns):
                if heard > ns:
                    return heard
            time.sleep(0.002)
        raise AssertionError(f"no heartbeat within {seconds} s")
