"""The process that answers clients by UDP. It is a client of the control socket like the snmp agent, and holds nothing that
matters: a flood of datagrams, or a crash here, costs the engine nothing. It runs only where `clients.listen` is configured.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import structlog

from hasnmp import protocol
from hasnmp import wire_clients as wire
from hasnmp.errors import Code
from hasnmp.model import CommandRow, CommandState, Verb
from hasnmp.protocol import ProtocolError
from hasnmp.runtime.desk import Counters, Desk, Done
from hasnmp.runtime.lease_board import LeaseBoard
from hasnmp.settings import Config
from hasnmp.snmp.listener import Addresses, Listener, in_words

MAX_SERVER_LINE = 64 << 20  # octets: a snapshot is one line, and this end trusts the server
BACKOFF_S = (0.05, 0.1, 0.2, 0.5, 1.0)
RETRY_LISTEN_S = 1.0
ABSENT = "its address is not on this machine"
TELL_S = 60.0  # refused datagrams are told of in the log at most this often: the log is no place for a flood
REPORT_S = 2.0  # what the engine may take for a report
REPORTS = 64  # that wait for the engine
TABLES = ("groups", "services")  # all that is asked for: the rest of each message is left alone


class Clients:
    def __init__(self, config: Config, node: str, board: LeaseBoard) -> None:
        self._config, self._node = config, node
        self._log = structlog.get_logger().bind(process="clients", node=node)
        self.desk = Desk(config, node, board, self._report)
        self._lock = threading.Lock()  # the listeners' threads and the loop share the desk
        self._listeners = [Listener(text, self.desk.handle, self._lock, self._failed) for text in config.clients.listen]
        self._loop: asyncio.AbstractEventLoop | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._waiting: dict[int, Done] = {}
        self._next = 0
        self._told, self._tell_at_s = Counters(), 0.0
        self._parent = os.getppid()
        self._stop = asyncio.Event()

    def _failed(self, error: Exception) -> None:
        self._log.error("request_failed", error=repr(error))

    async def run(self) -> int:
        loop = self._loop = asyncio.get_running_loop()
        gc.collect()
        gc.freeze()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        jobs = [loop.create_task(job) for job in (self._listen(), self._follow(), self._watch(), self._stop.wait())]
        try:
            done, _ = await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)
            for job in done:
                job.result()  # one that ended by an exception ends the process: the guardian starts another
        finally:
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)
            for listener in self._listeners:
                listener.close()
            self._log.info("clients_ended", **asdict(self.desk.counters))
        return 0

    async def _watch(self) -> None:
        """Without the guardian nobody wipes out the leases that are shown here."""
        while True:
            if os.getppid() != self._parent:
                self._log.error("guardian_gone", next="exit")
                return
            self.tell_refused(time.monotonic())
            await asyncio.sleep(0.2)

    def tell_refused(self, now_s: float) -> None:
        """Who is refused gets no answer: what an administrator looks for is said here."""
        now, told = replace(self.desk.counters), self._told
        fresh = {name: getattr(now, name) - getattr(told, name) for name in ("signature", "malformed", "dropped")}
        if any(fresh.values()) and now_s >= self._tell_at_s:
            self._told, self._tell_at_s = now, now_s + TELL_S
            self._log.warning("requests_refused", **fresh, last=self.desk.refused, next_s=TELL_S)

    async def _listen(self) -> None:
        """Have a socket on every listen address that is on this machine: virtual addresses come and go with their groups."""
        told: dict[str, str] = {}
        addresses = Addresses()
        try:
            while True:
                for listener in self._listeners:
                    why = self._adjust(listener)
                    if told.get(listener.text) != why:
                        told[listener.text] = why
                        if not why:
                            self._log.info("listening", address=listener.text)
                        elif why == ABSENT:
                            self._log.info("listen_waiting", address=listener.text, reason=why)
                        else:
                            self._log.error("listen_failed", address=listener.text, error=why, retry_s=RETRY_LISTEN_S)
                await addresses.changed(RETRY_LISTEN_S)
        finally:
            addresses.close()

    @staticmethod
    def _adjust(listener: Listener) -> str:
        """Open it, or close it, by whether its address is there. Returns why it is not open, "" if it is."""
        if listener.opened and listener.gone():
            listener.close()
        if not listener.opened:
            try:
                listener.open()
            except OSError as error:
                return ABSENT if error.errno == errno.EADDRNOTAVAIL else in_words(error)
        return ""

    # ------------------------------------------------------------------------------------------------ the engine

    async def _follow(self) -> None:
        """Keep the picture: connect, read, connect again. While the engine is away the picture ages, and says so."""
        failures = 0
        while True:
            try:
                reader, self._writer = await asyncio.open_unix_connection(
                    self._config.control.socket, limit=MAX_SERVER_LINE
                )
                while line := await reader.readline():
                    self._take(protocol.decode(line))
                    failures = 0
            except (OSError, ProtocolError, ValueError) as error:  # ValueError: a line beyond the limit
                if not failures:
                    self._log.warning("engine_unreachable", error=str(error), socket=self._config.control.socket)
            if self._writer is not None:
                self._writer.close()
                self._writer = None
            for number in list(self._waiting):
                self._answered(number, int(Code.NO_ENGINE), "the engine went away; report again")
            await asyncio.sleep(BACKOFF_S[min(failures, len(BACKOFF_S) - 1)])
            failures += 1

    def _take(self, message: dict[str, Any]) -> None:
        kind, number = message["type"], message.get("id")
        if kind in ("snapshot", "delta"):
            for part in ("tables", "rows", "gone"):
                if isinstance(message.get(part), dict):
                    message[part] = {table: message[part][table] for table in TABLES if table in message[part]}
            with self._lock:
                self.desk.mirror.apply(message)
        elif kind in ("reply", "error") and isinstance(number, int) and number in self._waiting:
            row = self.desk.mirror.apply(message) if kind == "reply" else None
            if isinstance(row, CommandRow):
                good = row.state is not CommandState.REFUSED
                self._answered(number, int(Code.DONE if good else row.code or Code.FAILED), row.text)
            else:
                self._answered(number, int(Code.FAILED), str(message.get("text", "")))

    # --------------------------------------------------------------------------------------------------- reports

    def _report(self, report: wire.Report, host: str, done: Done) -> None:
        """In a listener's thread, with the lock held."""
        assert self._loop is not None  # there are no listeners before
        self._loop.call_soon_threadsafe(self._hand_in, report, host, done)

    def _hand_in(self, report: wire.Report, host: str, done: Done) -> None:
        assert self._loop is not None
        self._next += 1
        number = self._next
        self._waiting[number] = done
        if self._writer is None or self._writer.is_closing():
            self._answered(number, int(Code.NO_ENGINE), "no engine runs here now; report again, or to another node")
        elif len(self._waiting) > REPORTS:
            self._answered(number, int(Code.BUSY), f"{REPORTS} reports wait for the engine; report less often")
        else:
            self._writer.write(protocol.encode({
                "type": "command", "id": number, "verb": int(Verb.REPORT), "target": report.service, "up": report.up,
                "message": report.text, "requester": f"reporter:{report.key}", "address": host,
            }))  # fmt: skip
            self._loop.call_later(
                REPORT_S,
                self._answered,
                number,
                int(Code.TIMED_OUT),
                f"the engine did not answer within {REPORT_S:g} s",
            )

    def _answered(self, number: int, code: int, text: str) -> None:
        done: Callable[[int, str], None] | None = self._waiting.pop(number, None)
        if done is not None:
            with self._lock:
                done(code, text)


def main(config: Config, node: str, board: LeaseBoard) -> int:
    """Run the process until SIGTERM, or until its parent is gone. Returns its exit status."""

    async def run() -> int:
        return await Clients(config, node, board).run()

    with contextlib.suppress(KeyboardInterrupt):
        return asyncio.run(run())
    return 0
