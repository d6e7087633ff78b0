"""Poison pills on the victim's side: a process that reads its mailboxes, and the guardian's end of it.

The process (`hasnmp-pills`, only where the configuration has the agent `pill`) looks at this node's row on the lease disk
twice a second and tells the *guardian*, for the engine may hang. It writes an acknowledgement only as the guardian says.
They talk JSON over a SOCK_SEQPACKET pair, one message a packet:

    process -> guardian   {"ready": true} at its start;  {"attacker", "kind", "number", "holder"} for each pill that is not
                          acknowledged yet, at each look
    guardian -> process   {"holder", "watchdog_ms", "acks": {attacker: [number, holder]}}: what is to stand in our place

A frozen disk freezes only the process. An answer that is lost is asked for again at the next look.
"""

from __future__ import annotations

import contextlib
import json
import logging
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from hasnmp.arbiters.pills import PILL, Acks, Pill, PillKind, PillRow
from hasnmp.errors import WireError
from hasnmp.runtime.processes import log
from hasnmp.settings import Config

LOOK_S = 0.5
MAX_PACKET = 65536


def used(config: Config) -> bool:
    """Does any node have the agent `pill`?"""
    return config.arbiter.type == "disk" and any(level.agent == PILL for node in config.nodes for level in node.fence)


# ------------------------------------------------------------------------------------------------------- the process


def main(config: Config, node: str, sock: socket.socket) -> int:
    """Until the guardian closes its end. Returns the exit status, 0."""
    row = PillRow(config.arbiter.device, config.cluster, node)
    wanted: Acks | None = None
    problem, look_at = "", 0.0
    sock.setblocking(True)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        sock.send(b'{"ready": true}')
        while True:
            readable, _, _ = select.select([sock], [], [], max(0.0, look_at - time.monotonic()) if wanted else None)
            if readable:
                packet = sock.recv(MAX_PACKET)
                if not packet:
                    break
                wanted = _acks_of(node, json.loads(packet))
            elif wanted is None:
                continue
            try:
                # Read before it is written, so that the sequence goes on; and again after, for what is there now.
                news = look(row, wanted)
                before, problem = problem, ""
            except (OSError, WireError) as error:
                news = []
                before, problem = problem, str(error)
            if problem != before:
                if problem:
                    log("pills_not_read", logging.WARNING, why=problem, next="no poison pill can reach this node")
                else:
                    log("pills_read_again")
            for pill in news:
                said = {"attacker": pill.attacker, "kind": int(pill.kind), "number": pill.number, "holder": pill.holder}
                sock.send(json.dumps(said).encode())
            look_at = time.monotonic() + LOOK_S
    row.close()
    return 0


def look(row: PillRow, wanted: Acks) -> list[Pill]:
    """See to it that our place says what is wanted; give the pills that are not acknowledged by that. Raises OSError,
    WireError."""
    pills, found = row.read()
    seq = found.seq if isinstance(found, Acks) else 0
    if not isinstance(found, Acks) or replace(found, seq=0) != replace(wanted, seq=0):
        # A number above any count of writes where the old one is lost.
        row.write_acks(replace(wanted, seq=max(seq + 1, 0 if seq else time.time_ns() // 1_000_000)))
    return [pill for pill in pills.values() if pill.kind is not PillKind.NONE and not wanted.of(pill)]


def _acks_of(node: str, said: dict[str, Any]) -> Acks:
    acks = {name: (int(number), str(holder)) for name, (number, holder) in said["acks"].items()}
    return Acks(node, said["holder"], watchdog_ms=said["watchdog_ms"], acks=acks)


# -------------------------------------------------------------------------------------------------- the guardian's end


@dataclass(slots=True)
class PillBox:
    """What the guardian knows of pills. swallow(pill): end everything; then call ended() once that is confirmed.

    clean(): is nothing left here of a former guardian? Only then what was meant for that one is acknowledged.
    """

    sock: socket.socket
    holder: str
    swallow: Callable[[Pill], None]
    clean: Callable[[], bool]
    watchdog_ms: int = 0
    acks: dict[str, tuple[int, str]] = field(default_factory=dict)
    pending: dict[str, Pill] = field(default_factory=dict)  # attacker -> being swallowed

    def __post_init__(self) -> None:
        self.sock.setblocking(False)

    def readable(self) -> None:
        """Take what the process says. Its end is no concern: it is started anew, and says that it is ready."""
        for _ in range(32):
            try:
                packet = self.sock.recv(MAX_PACKET)
            except OSError:
                return
            if not packet:
                return
            try:
                said = json.loads(packet)
                pill = None if "ready" in said else self._pill(said)
            except (ValueError, KeyError, TypeError) as error:
                log("message_refused", logging.WARNING, why=f"pills: {type(error).__name__}")
                continue
            if pill is not None:
                self._take(pill)
            self.tell()

    def _pill(self, said: dict[str, Any]) -> Pill:
        return Pill(str(said["attacker"]), "", PillKind(said["kind"]), int(said["number"]), str(said["holder"]))

    def _take(self, pill: Pill) -> None:
        if self.acks.get(pill.attacker) == (pill.number, pill.holder) or self.pending.get(pill.attacker) == pill:
            return
        if pill.holder != self.holder:
            # Of a former start of the guardian, which this one ended before it began; or of one that never was here.
            if self.clean():
                self.acks[pill.attacker] = pill.number, pill.holder
        elif pill.kind is PillKind.TEST:
            self.acks[pill.attacker] = pill.number, pill.holder
        else:
            self.pending[pill.attacker] = pill
            self.swallow(pill)

    def ended(self, holder: str) -> None:
        """Nothing is left of the former holder, seen and confirmed; the guardian goes on as another."""
        for pill in self.pending.values():
            self.acks[pill.attacker] = pill.number, pill.holder
        self.pending.clear()
        self.holder = holder
        self.tell()

    def armed(self, watchdog_ms: int) -> None:
        """The hardware watchdog's time, 0: it is not armed."""
        if watchdog_ms != self.watchdog_ms:
            self.watchdog_ms = watchdog_ms
            self.tell()

    def tell(self) -> None:
        said = {"holder": self.holder, "watchdog_ms": self.watchdog_ms, "acks": self.acks}
        with contextlib.suppress(OSError):  # it hangs in a dead disk; when it goes on it asks again
            self.sock.send(json.dumps(said).encode())
