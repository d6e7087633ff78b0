"""The check `sql`, as the engine sees it: a checker process (sql_checker.py) that stays, and is asked over a Unix socket.

It stays because loading SQLAlchemy costs 0.3 s of processor time, each time; asked, it costs a few milliseconds. It runs under
the guardian as a check, so it ends with the engine and with the group's lease, and it ends by itself when the engine's end of the
socket is closed. One that does not answer in time is ended by force, and the next is loaded at once.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import struct
import sys
from pathlib import Path

from hasnmp import settings
from hasnmp.agents.host import Host, NotRun, Program, how_it_ended
from hasnmp.core.events import Outcome
from hasnmp.runtime.messages import Purpose

CHECKER = (sys.executable, "-I", str(Path(__file__).with_name("sql_checker.py")))
MISSING = 127  # its exit status when SQLAlchemy or a driver is not there
MAX_LINE = 64 * 1024
MARGIN_MS = 50  # the answer comes so long before the caller's time limit, so that it says what was wrong
CLOSE_S = 1.0  # SIGKILL takes less, unless it sits in a driver that waits for hardware; the guardian tells what is left
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid (unix(7), SO_PEERCRED)


class _Gone(Exception):
    """The checker has ended."""


class SqlChecker:
    """The checker of one service. Use within the engine's loop only."""

    def __init__(self, service: settings.Service, host: Host) -> None:
        self._service, self._host = service, host
        self._loading: asyncio.Task[socket.socket] | None = None
        self._program: Program | None = None

    def begin(self) -> None:
        """Load it, if it is not there: as early as can be, for a starting service waits for its first answer."""
        if self._loading is None:
            self._loading = asyncio.get_running_loop().create_task(self._load())
            self._loading.add_done_callback(lambda task: task.cancelled() or task.exception())  # asked for, or not

    async def ask(self, timeout_ms: int) -> tuple[Outcome, str]:
        """What the database says. Cancelled in the middle of a question, it ends the checker."""
        check = self._service.check
        self.begin()
        assert self._loading is not None
        limit_ms = max(10, timeout_ms - MARGIN_MS)
        asked = False
        try:
            async with asyncio.timeout(limit_ms / 1000):
                channel = await asyncio.shield(self._loading)
                asked = True
                ok, text = await self._question(channel)
        except TimeoutError:
            if not asked:
                return Outcome.TIMED_OUT, f"{check.url}: SQLAlchemy was not loaded within {limit_ms} ms"
            self._drop()
            self.begin()
            return Outcome.TIMED_OUT, f"{check.url}: no answer to {check.query!r} within {limit_ms} ms"
        except asyncio.CancelledError:
            if asked:
                self._drop()
            raise
        except NotRun as error:
            self._drop()
            return error.outcome, f"{CHECKER[0]}: {error}"
        except (_Gone, OSError, ValueError) as error:
            program = self._program
            self._drop()
            ended = program.exited.result() if program is not None and not program.alive else None
            if ended is not None and ended.code == MISSING:
                return Outcome.MISSING, f"{check.url}: {ended.output_tail.strip()}"
            return Outcome.FAILED, f"{check.url}: the checker {how_it_ended(ended) if ended else f'is gone: {error}'}"
        return Outcome.OK if ok else Outcome.FAILED, f"{check.url}: {text}"

    async def close(self) -> None:
        """End it, and wait until it has ended: a group is given up only when nothing of it is left."""
        program = self._program
        self._drop()
        if program is not None and program.alive:
            await asyncio.wait((program.exited,), timeout=CLOSE_S)

    def _drop(self) -> None:
        """This one is of no use any more."""
        loading, self._loading = self._loading, None
        program, self._program = self._program, None
        if loading is not None:
            if loading.done() and not loading.cancelled() and loading.exception() is None:
                loading.result().close()
            loading.cancel()
        if program is not None:
            self._host.end(program)

    async def _load(self) -> socket.socket:
        """Start it and wait until it is ready. Raises NotRun, _Gone, OSError."""
        check, name = self._service.check, f"hasnmp-sql-{secrets.token_hex(16)}"
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as listener:
            listener.bind("\0" + name)
            listener.listen(8)
            order = {"url": check.url, "password": check.password.decode(errors="surrogateescape"),
                     "query": check.query, "expect": check.expect, "socket": name}  # fmt: skip
            program = await self._host.run(
                self._service, CHECKER, Purpose.CHECK, user=check.user, stdin=json.dumps(order)
            )
            self._program = program
            accepting = loop.create_task(self._accept(listener, program.pid))
            try:
                await asyncio.wait((accepting, program.exited), return_when=asyncio.FIRST_COMPLETED)
            finally:
                accepting.cancel()
            if not accepting.done() or accepting.cancelled():
                raise _Gone
            return accepting.result()

    @staticmethod
    async def _accept(listener: socket.socket, pid: int) -> socket.socket:
        """The connection of that very process: any user of this machine could connect to an abstract name."""
        loop = asyncio.get_running_loop()
        while True:
            channel, _ = await loop.sock_accept(listener)
            if (
                _CREDENTIALS.unpack(channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[0]
                == pid
            ):
                return channel
            channel.close()

    @staticmethod
    async def _question(channel: socket.socket) -> tuple[bool, str]:
        """Raises _Gone, OSError, ValueError (what came is no answer)."""
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(channel, b"\n")
        data = b""
        while not data.endswith(b"\n"):
            more = await loop.sock_recv(channel, MAX_LINE)
            if not more or len(data) > MAX_LINE:
                raise _Gone
            data += more
        answer = json.loads(data)
        return bool(answer["ok"]), str(answer["text"])
