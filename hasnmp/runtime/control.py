"""The engine's Unix socket (protocol.py): what the snmp agent, the command line and the consoles live on.

No client can block or slow the engine, whatever it does:
- a table's rows are compared with what was last sent, and encoded, once for all clients (picture.py); nothing without one, and
  little while nothing but times and counters changes (`changed`);
- a row's octets are kept while the row is the same, so that a snapshot is a join, also with a thousand events;
- what a client does not read stays in its buffer up to BUFFER_LIMIT; then it gets no deltas until it has read all of
  that, and then a fresh snapshot;
- client lines are worked off for at most WORK_S of each PAUSE_S, all clients together.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from hasnmp import protocol
from hasnmp.core.events import CommandIn, Notify, Reply
from hasnmp.errors import HasnmpError
from hasnmp.model import Verb, View
from hasnmp.runtime.loader import make_folder
from hasnmp.runtime.picture import Picture

FRESH_S = 0.02  # a new client's snapshot is at most so old, and a flood of connections costs no more looks than that
DELTA_S = 0.1  # a change of state is told within this
VOLATILE_S = 1.0  # a change of nothing but times and counters, or one of state that `changed` did not announce, is told
#                   this often; an empty delta, too, so that a reader knows how old its picture is
CLIENTS = 64
BUFFER_LIMIT = 1 << 20  # octets that may wait for one reader, besides its snapshot
QUEUE = 16  # lines of one client that wait to be worked off; more stay in its socket
WORK_S, PAUSE_S = 0.002, 0.01
DOCUMENT_LIMIT = 140_000  # characters of a file that is handed in, in parts
TEXT_LIMIT = 1024  # characters of any text in a command


class Server:
    """The socket's server, in the engine's loop.

    view: gives the whole picture now. why: the lines for `hasnmp why GROUP`; raises HasnmpError or KeyError for a group
    that does not exist. command: takes a command in; the answer comes back through reply().
    """

    def __init__(
        self,
        view: Callable[[], View],
        why: Callable[[str], tuple[str, ...]],
        command: Callable[[CommandIn], None],
        log: Any,
    ) -> None:
        self._view, self._why, self._command, self._log = view, why, command, log
        self.picture = Picture()
        self.clients: set[Client] = set()
        self._server: asyncio.AbstractServer | None = None
        self._path, self._wanted = "", ("", "")
        self._made: os.stat_result | None = None  # the socket's own entry
        self._opening: asyncio.Task[None] | None = None
        self._failed = ""  # why it could not be made anew
        self._work: deque[tuple[Client, bytes]] = deque()
        self._working = False
        self._replies: dict[int, tuple[Client, Any]] = {}
        self._next_reply = 1
        self._timer: asyncio.TimerHandle | None = None
        self._last_look_s = self._last_volatile_s = self._timer_at_s = 0.0
        self._changed = True
        self._users = Users()

    async def open(self, path: str, group: str) -> None:
        """Listen. A socket that an earlier daemon left is replaced (the daemon holds the node's lock).

        Raises OSError: the place can't be made or is not ours, or there is no such group.
        """
        self._wanted = path, group
        try:
            gid = grp.getgrnam(group).gr_gid if group else -1
        except KeyError:
            raise OSError(f"there is no group {group!r}; groupadd --system {group}") from None
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            mask = os.umask(0o177)  # nobody may connect before the group is set
            try:
                listener.bind(path)
            finally:
                os.umask(mask)
            if gid != -1:
                os.chown(path, -1, gid)
            os.chmod(path, 0o660)
            self._made = os.stat(path)
            if not self.clients:
                self._refresh()  # encode the events that were kept before anyone waits for them
            loop = asyncio.get_running_loop()
            self._server = await loop.create_unix_server(lambda: Client(self), sock=listener, backlog=CLIENTS)
        except BaseException:
            listener.close()
            raise
        self._path = path

    def hold(self) -> None:
        """See to it that the socket is there: somebody may have removed it, or its whole folder. Who is connected stays so."""
        if self._opening and not self._opening.done():
            return
        try:
            there = self._made is not None and os.path.samestat(os.stat(self._path), self._made)
        except OSError:
            there = False
        if not there:
            self._opening = asyncio.get_running_loop().create_task(self._open_anew())

    async def _open_anew(self) -> None:
        (path, group), before = self._wanted, self._server
        try:
            make_folder(os.path.dirname(path) or ".", 0o755)
            await self.open(path, group)
        except OSError as error:
            if str(error) != self._failed:
                self._log.error("control_socket_lost", path=path, why=str(error), next="tried again each second")
            self._failed = str(error)
            return
        if before is not None:
            before.close()
        self._failed = ""
        self._log.warning("control_socket_made_anew", path=self._path, why="somebody has removed it")

    def close(self) -> None:
        """End every connection and remove the socket."""
        if self._opening is not None:
            self._opening.cancel()
        if self._server is not None:
            self._server.close()
        if self._timer is not None:
            self._timer.cancel()
        for client in tuple(self.clients):
            client.end()
        if self._path:
            with contextlib.suppress(OSError):
                os.unlink(self._path)

    # ------------------------------------------------------------------------------------------------ to the clients

    def notify(self, effect: Notify) -> None:
        """Tell an event at once. The picture takes it in as a reader's Mirror does, so that no delta repeats it."""
        self.picture.put("events", str(effect.event.id), effect.event)
        if effect.raised is not None:
            self.picture.put("alarms", effect.raised.key, effect.raised)
        self.picture.drop("alarms", effect.cleared)
        if self.clients:
            self._tell(protocol.encode(protocol.event(effect.event, effect.raised, effect.cleared)))

    def reply(self, effect: Reply) -> None:
        """Answer a command. An answer to a client that has gone is no loss: its row stays in `commands`."""
        client, ident = self._replies.pop(effect.reply, (None, None))
        if client is not None:
            client.say({"type": "reply", "id": ident, "command": protocol.row_to_json(effect.command)})

    def _tell(self, line: bytes) -> None:
        for client in tuple(self.clients):
            client.tell(line)

    def _refresh(self) -> None:
        """Bring the picture up to date while nobody follows it."""
        self.picture.delta(self._view(), volatile=True, empty=True)
        self._last_look_s = self._last_volatile_s = time.monotonic()
        self._changed = False

    def changed(self) -> None:
        """More than times and counters may have changed: look as soon as DELTA_S allows."""
        if not self._changed:
            self._changed = True
            self._arm()

    def _tick(self) -> None:
        self._timer = None
        if not self.clients:
            return
        self._look(time.monotonic() - self._last_volatile_s >= VOLATILE_S - DELTA_S / 2)

    def _look(self, volatile: bool) -> None:
        """Tell the clients what is new, times and counters too if `volatile`."""
        now_s = time.monotonic()
        self._changed = False
        self._last_look_s = now_s
        if volatile:
            self._last_volatile_s = now_s
        line = self.picture.delta(self._view(), volatile, empty=volatile)
        if line:
            self._tell(line)
        for client in tuple(self.clients):
            client.catch_up()
        self._arm()

    def _arm(self) -> None:
        """Look again DELTA_S after the last look if something changed, or somebody is behind; else when times are due."""
        if not self.clients:
            return
        soon = self._changed or any(client.behind for client in self.clients)
        at_s = self._last_look_s + DELTA_S if soon else self._last_volatile_s + VOLATILE_S
        if self._timer is not None:
            if self._timer_at_s <= at_s:
                return
            self._timer.cancel()
        self._timer_at_s = at_s
        self._timer = asyncio.get_running_loop().call_later(max(0.0, at_s - time.monotonic()), self._tick)

    # ---------------------------------------------------------------------------------------------- from the clients

    def admit(self, client: Client) -> bool:
        """A new connection: False if there are too many. It gets its snapshot at once."""
        if len(self.clients) >= CLIENTS:
            self._log.warning("client_refused", clients=len(self.clients), limit=CLIENTS)
            return False
        if not self.clients:
            self._refresh()
        elif time.monotonic() - self._last_look_s > FRESH_S:
            self._look(True)  # whoever asks now is shown what is now, not what the others were told a second ago
        self.clients.add(client)
        self._arm()
        return True

    def leave(self, client: Client) -> None:
        self.clients.discard(client)
        self._replies = {reply: waiting for reply, waiting in self._replies.items() if waiting[0] is not client}

    def requester(self, uid: int) -> str:
        return self._users.name(uid)

    def enqueue(self, client: Client, line: bytes) -> None:
        self._work.append((client, line))
        if not self._working:
            self._working = True
            asyncio.get_running_loop().call_soon(self._work_off)

    def _work_off(self) -> None:
        until_s = time.monotonic() + WORK_S
        while self._work and time.monotonic() < until_s:
            client, line = self._work.popleft()
            if client in self.clients:
                self._handle(client, line)
                client.worked_off()
        self._working = bool(self._work)
        if self._working:
            asyncio.get_running_loop().call_later(PAUSE_S, self._work_off)

    def _handle(self, client: Client, line: bytes) -> None:
        ident: Any = None
        try:
            message = protocol.decode(line)
            ident = message.get("id")
            if not isinstance(ident, int | str | None):
                ident = None
                raise protocol.ProtocolError("id: neither a number nor a text")
            if message["type"] == "why":
                client.say({"type": "why", "id": ident, "lines": self._lines(_text(message, "group"))})
                return
            if message["type"] == "stage":
                client.document += _part(message, len(client.document))
                client.say({"type": "stage", "id": ident, "size": len(client.document)})
                return
            if message["type"] != "command":
                raise protocol.ProtocolError(f"unknown type {message['type'][:40]!r}; known: command, why, stage")
            command = self._command_in(client, message)
        except HasnmpError as error:
            client.say({"type": "error", "id": ident, "text": str(error)})
            return
        self._replies[command.reply] = (client, ident)
        self._command(command)

    def _lines(self, group: str) -> list[str]:
        try:
            return list(self._why(group))
        except KeyError:
            raise protocol.ProtocolError(f"no group {group[:40]!r}") from None

    def _command_in(self, client: Client, message: dict[str, Any]) -> CommandIn:
        """Raises ProtocolError: a field has a wrong type or an impossible value."""
        verb = message.get("verb")
        if not isinstance(verb, int) or isinstance(verb, bool) or verb not in {int(v) for v in Verb}:
            raise protocol.ProtocolError(f"verb: {str(verb)[:40]} is none of 2..{max(Verb)}")
        document, client.document = client.document, ""
        code = message.get("code", 0)
        if not isinstance(code, int) or isinstance(code, bool):
            raise protocol.ProtocolError("code: no number")
        if verb == Verb.SET and client.uid != os.geteuid():
            raise protocol.ProtocolError("verb: what an SNMP agent refused only this daemon's own agent can say")
        if verb == Verb.APPLY and client.uid not in (0, os.geteuid()):
            # The file says what the daemon runs, and as whom: that is more than to command it.
            raise protocol.ProtocolError("apply: only root, or the daemon's own user, may exchange the configuration")
        up = message.get("up", True)
        if not isinstance(up, bool):
            raise protocol.ProtocolError("up: neither true nor false")
        requester, address = client.user, "local"
        if client.uid == os.geteuid():
            # Our own snmp agent says for whom it asks; so may whoever could replace this daemon anyway.
            requester = _text(message, "requester") or requester
            address = _text(message, "address") or address
        self._next_reply += 1
        return CommandIn(
            reply=self._next_reply,
            verb=Verb(verb),
            target=_text(message, "target"),
            requester=requester,
            to=_text(message, "to"),
            reason=_text(message, "reason"),
            address=address,
            wall_ms=time.time_ns() // 1_000_000,
            document=document if verb == Verb.APPLY else "",
            up=up,
            message=_text(message, "message"),
            code=code,
        )


def _part(message: dict[str, Any], have: int) -> str:
    """A part of a file that is handed in before the command that it is for. Raises ProtocolError."""
    part = message.get("part", "")
    if not isinstance(part, str) or not part.isascii() or have + len(part) > DOCUMENT_LIMIT:
        raise protocol.ProtocolError(f"part: not a text, or more than {DOCUMENT_LIMIT} characters in all")
    return part


def _text(message: dict[str, Any], key: str) -> str:
    value = message.get(key, "")
    if not isinstance(value, str) or len(value) > TEXT_LIMIT:
        raise protocol.ProtocolError(f"{key}: not a text of at most {TEXT_LIMIT} characters")
    # What is shown on terminals and sent in traps holds no control characters (and no half of a surrogate pair).
    return "".join(c if c.isprintable() else " " for c in value)


class Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._buffer = b""
        self._queued = 0
        self.behind = False
        self._transport: asyncio.Transport | None = None
        self._limit = BUFFER_LIMIT
        self.uid = -1
        self.user = ""
        self.document = ""  # what was handed in by "stage", for the command that follows

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        sock = transport.get_extra_info("socket")
        _, self.uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        self.user = self._server.requester(self.uid)
        if not self._server.admit(self):
            self.say({"type": "error", "id": None, "text": f"more than {CLIENTS} connections"})
            self._transport.close()
            return
        self._send_snapshot()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.leave(self)
        self._transport = None

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._take_lines()

    def worked_off(self) -> None:
        self._queued -= 1
        if self._queued == 0:
            self._take_lines()

    def _take_lines(self) -> None:
        """Queue lines while there is room; without room the rest waits here, and what follows in the client."""
        assert self._transport is not None
        while self._queued < QUEUE:
            line, end, rest = self._buffer.partition(b"\n")
            if len(line) > protocol.MAX_LINE:
                self.say({"type": "error", "id": None, "text": f"a line of more than {protocol.MAX_LINE} octets"})
                self.end()
                return
            if not end:
                break
            self._buffer = rest
            self._queued += 1
            self._server.enqueue(self, line)
        if self._queued:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def say(self, message: dict[str, Any]) -> None:
        """Answer this client. One that lets even its answers pile up is ended."""
        if self._transport is None:
            return
        self._transport.write(protocol.encode(message))
        if self._transport.get_write_buffer_size() > 2 * self._limit:
            self._transport.abort()

    def tell(self, line: bytes) -> None:
        """A delta or an event, unless this client is behind: then it gets a snapshot later."""
        if self._transport is None or self.behind:
            return
        if self._transport.get_write_buffer_size() > self._limit:
            self.behind = True
        else:
            self._transport.write(line)

    def catch_up(self) -> None:
        if self.behind and self._transport is not None and self._transport.get_write_buffer_size() == 0:
            self.behind = False
            self._send_snapshot()

    def _send_snapshot(self) -> None:
        assert self._transport is not None
        snapshot = self._server.picture.snapshot()
        self._limit = BUFFER_LIMIT + len(snapshot)
        self._transport.write(snapshot)

    def end(self) -> None:
        """Close after what is buffered, if the client reads it at once; a connection is not worth waiting for."""
        if self._transport is not None:
            self._server.leave(self)
            self._transport.close()


class Users:
    """User names by number, from /etc/passwd only: a directory server must not be able to delay the engine."""

    def __init__(self, path: str = "/etc/passwd") -> None:
        self._path = Path(path)
        self._stamp = 0
        self._names: dict[int, str] = {}

    def name(self, uid: int) -> str:
        try:
            stamp = self._path.stat().st_mtime_ns
            if stamp != self._stamp:
                lines = (line.split(":") for line in self._path.read_text(errors="replace").splitlines())
                self._names = {int(parts[2]): parts[0] for parts in lines if len(parts) > 2 and parts[2].isdigit()}
                self._stamp = stamp
        except OSError:
            pass
        return self._names.get(uid, f"uid {uid}")
