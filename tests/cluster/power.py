"""The hosts' power switches: out of band, reached by a socket in the folder that all hosts have, whatever cable is cut.

Really cuts the power of a host, and gives it back: then its daemon is started, as at boot. Each switch can be made to
fail: `modes[switch]` is ok | refuse (says why) | hang (never answers) | lie (says done, and does nothing).
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from dataclasses import dataclass, field

from tests.cluster.lab import ETC
from tests.cluster.pair import Pair

SOCKET = "power.sock"


def level(plug: str, switch: str = "one", cuts: str = "power", action: str = "reboot", timeout_ms: int = 5000) -> str:
    """A fence level of the configuration, as YAML in one line."""
    options = f"{{plug: {plug}, switch: {switch}, socket: {ETC}/{SOCKET}}}"
    return f"{{agent: fence_lab.py, cuts: {cuts}, action: {action}, timeout_ms: {timeout_ms}, options: {options}}}"


@dataclass
class Power:
    """Use as a context manager."""

    pair: Pair
    modes: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[int, str, str, str]] = field(default_factory=list)  # CLOCK_MONOTONIC ns, switch, action, plug

    def __enter__(self) -> Power:
        self._listen()
        self.pair.anew.append(self._listen)
        return self

    def _listen(self) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        path = self.pair.lab.etc / SOCKET
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._serve, args=(self._listener,), daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self.pair.anew.remove(self._listen)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def offs(self, since_ns: int = 0) -> list[str]:
        """The plugs that were to be switched off, in the order of the asking."""
        return [plug for at, _, action, plug in list(self.asked) if action == "off" and at >= since_ns]

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                line, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(line,), daemon=True).start()

    def _answer(self, line: socket.socket) -> None:
        with line, contextlib.suppress(OSError):
            switch, action, plug = line.recv(200).decode().split()
            self.asked.append((time.monotonic_ns(), switch, action, plug))
            mode = self.modes.get(switch, "ok")
            if mode == "hang":
                line.recv(1)  # until whoever asked is gone
            elif mode == "refuse":
                line.send(b"the switch does not know this plug\n")
            elif mode == "lie" and action in ("off", "on"):
                line.send(b"done\n")
            else:
                line.send(f"{self._do(action, plug)}\n".encode())

    def _do(self, action: str, plug: str) -> str:
        host = self.pair.lab[plug]
        with host.switch:
            if action == "off":
                host.power_off()
            elif action == "on" and not host.pid:
                host.power_on()
                self.pair.start(plug)
            else:
                return "on" if host.runs() else "off"
        return "done"
