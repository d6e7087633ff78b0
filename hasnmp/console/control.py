"""The command line's end of the control socket: blocking, with a deadline on every wait."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from typing import Any

from hasnmp.errors import HasnmpError, Unreachable
from hasnmp.model import CommandRow, CommandState, EventRow, Verb, View
from hasnmp.protocol import Mirror, ProtocolError, decode, encode

CONNECT_S = 3.0  # also for the first snapshot: the engine answers within one batch, 100 ms, when it lives
STAGE_PART = 8192  # characters: a line of the protocol is at most twice that
ENDED = (CommandState.DONE, CommandState.FAILED, CommandState.REFUSED)


class BadRequest(HasnmpError):
    """The engine could not make sense of a request (an `error` message)."""


class Control:
    """A connection to the engine, and the copy of its view that the messages keep up.

    Raises Unreachable from every method: nobody answers at `path`, or no longer does; the text says what to do.
    """

    def __init__(self, path: str, tables: tuple[str, ...] = ()) -> None:
        """tables: the only ones to take from the snapshot, for a look that is over at once; () = all."""
        self.path = path
        self._tables = tables
        self.mirror = Mirror()
        self._received = b""
        self._next_id = 1
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(CONNECT_S)
        try:
            self._socket.connect(path)
        except FileNotFoundError:
            self.close()
            raise Unreachable(
                f"no daemon answers: {path} does not exist; start hasnmpd, or name its socket with --socket or --config"
            ) from None
        except PermissionError:
            self.close()
            raise Unreachable(
                f"no access to {path}: it is for root and the group that `control.group` names; "
                "use sudo, or join that group"
            ) from None
        except (ConnectionRefusedError, TimeoutError, OSError) as error:
            self.close()
            raise Unreachable(
                f"no daemon answers at {path}: {error.strerror or 'it took longer than 3 s'}; is hasnmpd running? "
                "see: systemctl status hasnmpd"
            ) from None

    def close(self) -> None:
        self._socket.close()

    def view(self) -> View:
        """The picture that the engine sent at connect, or the newest since."""
        deadline = time.monotonic() + CONNECT_S
        while not self.mirror.complete:
            self.receive(deadline)
        return self.mirror.view

    def receive(self, deadline: float | None = None) -> dict[str, Any] | None:
        """The next message, already taken into the mirror. deadline: of time.monotonic(), None waits for ever.

        Returns None when the deadline of an established view passed. Raises BadRequest: the engine says `error`.
        """
        while b"\n" not in self._received:
            try:
                self._socket.settimeout(None if deadline is None else max(0.001, deadline - time.monotonic()))
                octets = self._socket.recv(1 << 18)
            except TimeoutError:
                if self.mirror.complete:
                    return None
                raise Unreachable(f"the engine at {self.path} accepted the connection but says nothing") from None
            except OSError as error:
                raise Unreachable(f"the connection to {self.path} broke: {error.strerror}") from None
            if not octets:
                raise Unreachable(f"the engine closed the connection to {self.path}: it stopped, or is being restarted")
            self._received += octets
        line, self._received = self._received.split(b"\n", 1)
        try:
            message = decode(line)
            if message["type"] == "error":
                raise BadRequest(str(message.get("text", "")))
            if self._tables and message["type"] == "snapshot" and isinstance(message.get("tables"), dict):
                message["tables"] = {name: rows for name, rows in message["tables"].items() if name in self._tables}
            self.mirror.apply(message)
        except ProtocolError as error:
            raise Unreachable(f"what answers at {self.path} does not speak this protocol: {error}") from None
        return message

    def _ask(self, message: dict[str, Any], answer: str, timeout_s: float) -> dict[str, Any]:
        """Send a request and give the answer of type `answer` that bears its id."""
        message["id"] = self._next_id
        self._next_id += 1
        try:
            self._socket.settimeout(timeout_s)
            self._socket.sendall(encode(message))
        except OSError as error:
            raise Unreachable(f"the connection to {self.path} broke: {error.strerror or error}") from None
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            got = self.receive(deadline)
            if got is not None and got["type"] == answer and got.get("id") == message["id"]:
                return got
        raise Unreachable(f"the engine at {self.path} did not answer within {timeout_s:g} s")

    def why(self, group: str) -> list[str]:
        """What the engine has to say of the group, line by line."""
        return [str(line) for line in self._ask({"type": "why", "group": group}, "why", CONNECT_S)["lines"]]

    def stage(self, document: str) -> None:
        """Hand a file in, for the command that follows."""
        for at in range(0, len(document), STAGE_PART):
            self._ask({"type": "stage", "part": document[at : at + STAGE_PART]}, "stage", CONNECT_S)

    def command(
        self, verb: Verb, target: str, *, to: str = "", reason: str = "", up: bool = True, message: str = ""
    ) -> CommandRow:
        """Hand a command in. Returns its row as the engine accepted or refused it; `follow` tells the rest."""
        asked = {"type": "command", "verb": int(verb), "target": target, "to": to, "reason": reason,
                 "requester": requester(), "up": up, "message": message}  # fmt: skip
        answer = self.mirror.apply(self._ask(asked, "reply", 5.0))
        if not isinstance(answer, CommandRow):
            raise Unreachable(f"what answers at {self.path} does not speak this protocol: a reply without a command")
        return answer

    def follow(self, row: CommandRow, timeout_s: float) -> Iterator[CommandRow | EventRow | None]:
        """What becomes of a command: its row at each change (the last one has ended), and the events meanwhile.

        None last: it had not ended within timeout_s.
        """
        deadline = time.monotonic() + timeout_s
        yield row
        while row.state not in ENDED:
            # The row may have been renewed by a delta that came before the reply, so look before waiting.
            newest = self.mirror.view.tables["commands"].get(str(row.id))
            if isinstance(newest, CommandRow) and newest != row and newest.asked_wall_ms == row.asked_wall_ms:
                row = newest
                yield row
                continue
            message = self.receive(deadline)
            if message is None and time.monotonic() >= deadline:
                yield None
                return
            if message is not None and message["type"] == "event":
                event = self.mirror.view.tables["events"].get(str(message["event"].get("id")))
                if isinstance(event, EventRow):
                    yield event


def requester() -> str:
    """Who asks, for the command table. The engine knows the peer's user id by itself; this adds who became root."""
    import pwd  # only commands need it

    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = str(os.getuid())
    before = os.environ.get("SUDO_USER", "")
    return f"{before} as {name}" if before and before != name else name
