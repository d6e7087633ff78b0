"""The lease i/o process, and the engine's side of it.

One small process for the shared device, so that a frozen disk freezes only this. Each group has a thread of its own,
started by its first request: a group's requests are served one at a time in their order, so there are never two writes
in flight to a slot (design rule 3); those of different groups do not wait for each other, so a slow disk costs every
group what it costs one. Both ends talk JSON over a Unix SOCK_SEQPACKET pair, one message a packet:

    engine -> lease i/o   {"attempt", "group", "slot": {...} or null, "not_after_ns"}         (core.events.ArbiterCall)
    lease i/o -> engine   {"attempt", "group", "read_at_ns", "slots": {node: {...} or reason}, "error", "uuid", "took_us"}
                          {"ready": true}   at the process's start
    engine -> lease i/o   {"ping": n}       asked for when one is ready
    lease i/o -> engine   {"pong": n, "under_way": [attempt...]}   sent at once. A request made before the ping that has
                                            no answer before the pong, and is not named in it, was lost with an older
                                            process

The pair may outlive the process: whoever starts a new one may hand it the same socket.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import socket
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from hasnmp.arbiters.disk import LeaseDisk
from hasnmp.core.events import ArbiterAnswer, ArbiterCall
from hasnmp.errors import WireError
from hasnmp.runtime.kernel import prefer_this_process
from hasnmp.runtime.processes import SOFTWARE, log
from hasnmp.settings import Config
from hasnmp.wire import Slot, SlotState

if TYPE_CHECKING:
    import asyncio

MAX_PACKET = 65536


def now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _slot_to_json(slot: Slot) -> dict[str, Any]:
    return {
        "group": slot.group, "node": slot.node, "seq": slot.seq, "state": int(slot.state), "holder": slot.holder,
        "token": slot.token, "duration_ms": slot.duration_ms,
    }  # fmt: skip


def _slot_from_json(data: dict[str, Any]) -> Slot:
    """Raises KeyError, ValueError, TypeError."""
    return Slot(**{**data, "state": SlotState(data["state"])})


# ------------------------------------------------------------------------------------------------------- the process


def main(sock: socket.socket, config: Config, node: str) -> int:
    """Serve requests until the other end closes. sock: blocking SOCK_SEQPACKET. Returns the exit status, 0.

    Threads that hang in the disk are left to the process's end, which the kernel makes wait for their i/o.
    """
    prefer_this_process()  # a renewal that waits for a busy service to give way may come too late
    sock.setblocking(True)
    served = Served(sock, config, node)
    try:
        sock.send(b'{"ready": true}')
        while packet := sock.recv(MAX_PACKET):
            request = json.loads(packet)
            if "ping" in request:
                served.pong(request["ping"])
            else:
                served.take(request)
    except (BrokenPipeError, ConnectionResetError):
        pass  # the engine is gone, and with it everybody who would want an answer
    served.close()
    return 0


class Served:
    """The groups that were asked for, each with its thread. As many as the configuration has groups: a frozen disk
    blocks one thread a group."""

    def __init__(self, sock: socket.socket, config: Config, node: str) -> None:
        self._sock, self._config, self._node = sock, config, node
        self._nodes = tuple(one.name for one in config.nodes)
        self._known: dict[str, str] = {}  # the disk that any thread saw first: an exchanged one is an error to all
        self._requests: dict[str, queue.SimpleQueue[dict[str, Any] | None]] = {}  # by group
        self._under_way: list[int] = []  # attempts without an answer
        self._lock = threading.Lock()  # an answer is sent and its attempt forgotten in one, for pong()

    def take(self, request: dict[str, Any]) -> None:
        group = request["group"]
        with self._lock:
            self._under_way.append(request["attempt"])
        if group not in self._requests:
            requests = self._requests[group] = queue.SimpleQueue()
            threading.Thread(target=self._run, args=(requests,), name=group, daemon=True).start()
        self._requests[group].put(request)

    def pong(self, number: int) -> None:
        with self._lock:
            self._sock.send(json.dumps({"pong": number, "under_way": self._under_way}).encode())

    def close(self) -> None:
        """The threads end when they have served what they have."""
        for requests in self._requests.values():
            requests.put(None)

    def _run(self, requests: queue.SimpleQueue[dict[str, Any] | None]) -> None:
        """One group's thread, with its own view of the disk: nothing of it is shared but the name of the disk."""
        prefer_this_process()  # a thread does not inherit it
        disk = LeaseDisk(self._config.arbiter.device, self._config.cluster, known=self._known)
        try:
            while request := requests.get():
                answer = json.dumps(_serve(disk, self._nodes, self._node, request)).encode()
                with self._lock:
                    self._sock.send(answer)
                    self._under_way.remove(request["attempt"])
        except OSError:
            pass  # as in main(), which ends by the same
        except BaseException:
            # A defect: without this thread its group would wait for ever. The guardian starts a new process.
            log("process_failed", logging.ERROR, name="lease_io", traceback=traceback.format_exc())
            os._exit(SOFTWARE)
        disk.close()


def _serve(disk: LeaseDisk, nodes: tuple[str, ...], node: str, request: dict[str, Any]) -> dict[str, Any]:
    """Write if asked to, *then* read: who reads first may miss a claim that was written meanwhile."""
    group = request["group"]
    slots: dict[str, Any] = {}
    error = ""
    begun_ns = now_ns()
    try:
        if request["slot"] is not None:
            slot = _slot_from_json(request["slot"])
            if (slot.group, slot.node) != (group, node):
                raise WireError("not mine", f"the slot of {slot.group} and {slot.node} is not this node's to write")
            disk.open()  # may take long; the time limit is looked at last of all
            late_ns = now_ns() - request["not_after_ns"]
            if late_ns >= 0:
                raise WireError("too late", f"{late_ns // 1_000_000} ms past the limit, nothing was written")
            disk.write_slot(slot)
        found = disk.read_slots(group)
        for one in nodes:
            place = found.get(one, "no place")
            slots[one] = place if isinstance(place, str) else _slot_to_json(place)
    except WireError as fault:
        error = str(fault)
    except OSError as fault:
        error = f"{fault.strerror or fault}: {disk.path}"
    read_at_ns = now_ns()
    return {
        "attempt": request["attempt"], "group": group, "read_at_ns": read_at_ns, "slots": slots if not error else {},
        "error": error, "uuid": disk.uuid, "took_us": (read_at_ns - begun_ns) // 1000,
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------- the engine's side


class LeaseIoClient:
    """Every call comes back as exactly one ArbiterAnswer, never from within call() itself.

    A call that was not answered within io_timeout_ms comes back with an error; its i/o may still be under way, so
    further calls of its group are answered `busy` until it has returned, which frees the group and tells nobody.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        io_timeout_ms: int,
        answered: Callable[[ArbiterAnswer], None],
    ) -> None:
        self._loop = loop
        self._sock: socket.socket | None = sock
        self._io_timeout_ms = io_timeout_ms
        self._answered = answered
        self._under_way: dict[str, tuple[ArbiterCall, asyncio.TimerHandle | None]] = {}  # by group; None: overdue
        self._pings = 0
        self._suspects: frozenset[int] = frozenset()  # attempts made before the newest ping
        sock.setblocking(False)
        loop.add_reader(sock.fileno(), self._readable)

    def call(self, call: ArbiterCall) -> None:
        """Never raises, never blocks."""
        if self._sock is None:
            self._fail(call, "the lease i/o process is gone")
            return
        if call.group in self._under_way:
            before, _ = self._under_way[call.group]
            self._fail(call, f"busy: the disk hangs, the i/o of attempt {before.attempt} has not returned")
            return
        request = {
            "attempt": call.attempt, "group": call.group, "not_after_ns": call.not_after_ns,
            "slot": None if call.slot is None else _slot_to_json(call.slot),
        }  # fmt: skip
        try:
            self._sock.send(json.dumps(request).encode())
        except OSError as error:  # a full socket, or nobody at its other end: in both cases nothing was asked
            self._fail(call, f"the lease i/o process can't be asked: {os.strerror(error.errno or 0)}")
            return
        timer = self._loop.call_later(self._io_timeout_ms / 1000, self._overdue, call)
        self._under_way[call.group] = (call, timer)

    def busy(self, group: str) -> bool:
        """Is an i/o of the group under way, in time or overdue?"""
        return group in self._under_way

    def close(self) -> None:
        """Nothing is answered from here on."""
        if self._sock is not None:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()
            self._sock = None
        for _, timer in self._under_way.values():
            if timer is not None:
                timer.cancel()
        self._under_way.clear()

    def _fail(self, call: ArbiterCall, error: str) -> None:
        # Later, not now: the engine's step that made this effect is still being executed.
        self._loop.call_soon(self._answered, ArbiterAnswer(call.attempt, call.group, now_ns(), error=error))

    def _overdue(self, call: ArbiterCall) -> None:
        self._under_way[call.group] = (call, None)
        self._answered(
            ArbiterAnswer(call.attempt, call.group, now_ns(), error=f"no answer within {self._io_timeout_ms} ms")
        )

    def _readable(self) -> None:
        while self._sock is not None:
            try:
                packet = self._sock.recv(MAX_PACKET)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:
                self._loop.remove_reader(self._sock.fileno())
                self._sock.close()
                self._sock = None
                self._lost("the lease i/o process ended")
                return
            answer = json.loads(packet)
            if "ready" in answer:
                self._ping()
            elif "pong" in answer:
                if answer["pong"] == self._pings:
                    lost = self._suspects.difference(answer["under_way"])
                    self._lost("the lease i/o process was started anew", lost)
            else:
                self._returned(answer)

    def _returned(self, answer: dict[str, Any]) -> None:
        group = answer["group"]
        call, timer = self._under_way.get(group, (None, None))
        if call is None or call.attempt != answer["attempt"]:
            return
        del self._under_way[group]
        if timer is None:
            return
        timer.cancel()
        slots = {
            node: place if isinstance(place, str) else _slot_from_json(place)
            for node, place in answer["slots"].items()
        }  # fmt: skip
        self._answered(
            ArbiterAnswer(
                call.attempt, group, answer["read_at_ns"], slots, answer["error"], answer["uuid"], answer["took_us"]
            )
        )

    def _ping(self) -> None:
        """Find out which calls an older process took with it: the new one says which it has."""
        assert self._sock is not None
        self._pings += 1
        self._suspects = frozenset(call.attempt for call, _ in self._under_way.values())
        with suppress(OSError):  # it ended again at once: the next one will be ready, too
            self._sock.send(json.dumps({"ping": self._pings}).encode())

    def _lost(self, why: str, attempts: frozenset[int] | None = None) -> None:
        """The process that had these calls (None: every one) has ended. So has its i/o: a process ends only after."""
        for call, timer in tuple(self._under_way.values()):
            if attempts is not None and call.attempt not in attempts:
                continue
            del self._under_way[call.group]
            if timer is not None:
                timer.cancel()
                self._answered(ArbiterAnswer(call.attempt, call.group, now_ns(), error=why))
