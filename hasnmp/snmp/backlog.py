"""What receivers have not got yet, on the disk: a file of lines to which everything is appended.

    {"n": 7, "o": [1,3,6,...], "t": ticks, "k": rank, "v": "base64"}   a notification, numbered
    {"r": "192.0.2.50:162/3/inform", "a": 7, "l": 0}                   that receiver is done with all up to 7; l were dropped

A line is in the kernel's hands before its notification leaves, so a killed agent loses nothing; it is synced within a
second, off the loop, so a power cut loses that second at most, and repeats rather than loses what was acknowledged in it.
The file is written anew, off the loop, when most of its lines are over. A line that was cut short is left out. Where the file can't be
written the backlog lives in memory, and that is said once.
"""

from __future__ import annotations

import base64
import contextlib
import errno
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
        self._since: list[bytes] | None = None  # lines that came while the file is written anew; None: it is not
        self._draft_lines = 0
        self._failure: OSError | None = None
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
        return self._file >= 0 and self._since is None and self._lines > SLACK + 2 * live

    def begin_compaction(self, live: Iterable[Notification]) -> Callable[[], bool]:
        """Begin to write the file anew with what receivers still need. Gives what is to be done off the loop: it takes as
        long as the file does, and says whether it is written; then end_compaction() must be called. The file goes on
        meanwhile."""
        # The newest number must outlive its entry, or numbers that a receiver is done with would come again.
        last, kept, positions = self.last, tuple(live), tuple(self._positions.items())
        self._since = []
        draft = self._path.with_suffix(".new")

        def write() -> bool:
            try:
                with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
                    file.write(json.dumps({"last": last}).encode() + b"\n")
                    file.writelines(_entry(n) for n in kept)
                    file.writelines(_position(name, *at) for name, at in positions)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                self._failure = error
                return False
            return True

        self._draft_lines = 1 + len(kept) + len(positions)
        return write

    def end_compaction(self, written: bool) -> None:
        """Have the new file take over, with what came since. Where it could not be written the old one goes on."""
        since, self._since = self._since or [], None
        if self._file < 0:
            return  # closed meanwhile: the old file has all of it
        draft = self._path.with_suffix(".new")
        try:
            if not written:
                raise self._failure or OSError(errno.EIO, "the new backlog was not written")
            file = os.open(draft, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            try:
                addition = b"".join(since)
                if os.write(file, addition) != len(addition):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                draft.rename(self._path)
            except BaseException:
                os.close(file)
                raise
        except OSError as error:
            self._lines = 0  # a full disk is not to be tried again for every notification
            self._fail(error)
            return
        self._close_file()
        self._file = file
        self._lines, self._cut, self.dirty = self._draft_lines + len(since), False, True

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
        if self._since is not None:
            self._since.append(line)
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
