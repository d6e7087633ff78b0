"""What receivers have not got yet, on the disk: a file of lines to which everything is appended.

    {"n": 7, "o": [1,3,6,...], "t": ticks, "k": rank, "v": "base64"}   a notification, numbered
    {"r": "192.0.2.50:162/3/inform", "a": 7, "l": 0}                   that receiver is done with all up to 7; l were dropped

A line is in the kernel's hands before its notification leaves, so a killed agent loses nothing; it is synced within a
second, off the loop, so a power cut loses that second at most, and repeats rather than loses what was acknowledged in it.
The file is written anew when most of its lines are over. A line that was cut short is left out. Where the file can't be
written the backlog lives in memory, and that is said once.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hasnmp.snmp import ber
from hasnmp.snmp.notification import Notification
from hasnmp.snmp.objects import Syntax

SLACK = 2000  # lines that may be over before the file is written anew


class Backlog:
    """entries: what the file held, by number, until forget() is called. last: the newest number."""

    def __init__(self, path: Path, receivers: Iterable[str], trouble: Callable[[OSError], None]) -> None:
        self._path = path
        self._trouble = trouble
        self._told = False
        self._file = -1
        self._cut = False
        self._lines = 0
        self.last = 0
        self.dirty = False
        self.entries: dict[int, Notification] = {}
        self._positions: dict[str, tuple[int, int]] = {}
        for line in self._read():
            self._take(line)
        self._weed()
        known = dict.fromkeys(receivers)
        # A receiver that the file does not know begins with what comes next.
        self._positions = {name: self._positions.get(name, (self.last, 0)) for name in known}
        self._open()

    def position(self, receiver: str) -> tuple[int, int]:
        """(done up to this number, dropped since it was last told of those)"""
        return self._positions[receiver]

    def forget(self) -> None:
        """What was read has been handed out."""
        self.entries = {}

    def add(self, notification: Notification) -> Notification:
        """The notification with its number, once the file has it."""
        self.last += 1
        numbered = replace(notification, number=self.last)
        self._append(_entry(numbered))
        return numbered

    def record(self, receiver: str, done: int, lost: int) -> None:
        if self._positions.get(receiver) != (done, lost):
            self._positions[receiver] = (done, lost)
            self._append(_position(receiver, done, lost))

    def wants_compaction(self, live: int) -> bool:
        return self._file >= 0 and self._lines > SLACK + 2 * live

    def compact(self, live: Iterable[Notification]) -> None:
        """Write the file anew with what receivers still need."""
        lines = [_entry(n) for n in live] + [_position(r, *at) for r, at in self._positions.items()]
        # The newest number must outlive its entry, or numbers that a receiver is done with would come again.
        lines.insert(0, json.dumps({"last": self.last}).encode() + b"\n")
        draft = self._path.with_suffix(".new")
        try:
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
            draft.rename(self._path)
            self._close_file()
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            self._lines, self._cut = len(lines), False
        except OSError as error:
            self._fail(error)

    def sync(self) -> None:
        """Make it durable; may take its time, so it is called off the loop."""
        self.dirty = False
        with contextlib.suppress(OSError):
            # A copy of its own: the loop may close the file meanwhile, to write it anew.
            copy = os.dup(self._file)
            try:
                os.fdatasync(copy)
            finally:
                os.close(copy)

    def close(self) -> None:
        self.sync()
        self._close_file()

    # ------------------------------------------------------------------------------------------------- the file

    def _read(self) -> list[dict[str, Any]]:
        found = []
        with contextlib.suppress(OSError), self._path.open("rb") as file:
            for line in file:
                self._lines += 1
                with contextlib.suppress(ValueError, RecursionError):
                    value = json.loads(line)
                    if isinstance(value, dict):
                        found.append(value)
        return found

    def _take(self, line: dict[str, Any]) -> None:
        with contextlib.suppress(KeyError, TypeError, ValueError, OverflowError):
            if "n" in line:
                number = int(line["n"])
                variables = base64.b64decode(line["v"], validate=True)
                self.entries[number] = Notification(
                    number, tuple(map(int, line["o"])), int(line["t"]), variables, int(line["k"])
                )
                self.last = max(self.last, number)
            elif "last" in line:
                self.last = max(self.last, int(line["last"]))
            else:
                self._positions[str(line["r"])] = (int(line["a"]), int(line["l"]))

    def _weed(self) -> None:
        """Leave out what can be read and can't be sent: who finds it later would fail by it, at each start anew."""
        done = min((done for done, _ in self._positions.values()), default=0)
        for number, notification in list(self.entries.items()):
            if number > done and not _sound(notification):
                del self.entries[number]

    def _open(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            size = os.fstat(self._file).st_size
            self._cut = size > 0 and os.pread(self._file, 1, size - 1) != b"\n"
        except OSError as error:
            self._fail(error)
        for name, at in self._positions.items():
            self._append(_position(name, *at))

    def _append(self, line: bytes) -> None:
        if self._file < 0:
            return
        line = b"\n" + line if self._cut else line
        try:
            self._cut = os.write(self._file, line) != len(line)
        except OSError as error:
            self._cut = True
            self._fail(error)
        self._lines += 1
        self.dirty = True

    def _fail(self, error: OSError) -> None:
        if not self._told:
            self._told = True
            self._trouble(error)

    def _close_file(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _sound(n: Notification) -> bool:
    """Can it be encoded, and its variables be taken apart, as each kind of receiver will?"""
    try:
        ber.encode_value(ber.TIMETICKS, n.ticks)
        ber.decode_oid(ber.encode_oid(n.oid))
        for _, tag, contents in n.bindings():
            ber.decode_value(Syntax(tag), contents)
    except (ValueError, IndexError, ber.BerError):
        return False
    return True


def _entry(n: Notification) -> bytes:
    text = base64.b64encode(n.variables).decode()
    line = {"n": n.number, "o": n.oid, "t": n.ticks, "k": n.rank, "v": text}
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"


def _position(receiver: str, done: int, lost: int) -> bytes:
    return json.dumps({"r": receiver, "a": done, "l": lost}, separators=(",", ":")).encode() + b"\n"
