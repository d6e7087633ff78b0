"""How far the notifications have come, in a file of run_dir, so that the next agent goes on from there, whatever ends this one.

The file ends with the machine's uptime and is never synced: it bridges a restart of the agent or of the daemon, no more.
Where it can't be written it is only remembered. What was handed to the receivers' queues is in the backlog (backlog.py).
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

_MOST = 1 << 16  # octets of the file


class Told:
    """last: the newest event that was taken up; 0 = none is known. held: those up to it that the throttle still keeps back.
    dropped: what it dropped and has not told of. at_ms: haEventDate of the newest one, Unix time; 0 = not known."""

    def __init__(self, path: Path) -> None:
        self.last = 0
        self.held: tuple[int, ...] = ()
        self.dropped = 0
        self.at_ms = 0
        self._file = -1
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, IndexError):
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            line = os.pread(self._file, _MOST, 0).split(b"\n")[0]
            if line.isdigit():  # what the first version wrote
                self.last = int(line)
            elif line:
                stored = json.loads(line)
                held = tuple(map(int, stored["held"]))
                self.last, self.held, self.dropped = int(stored["last"]), held, int(stored["dropped"])
                self.at_ms = int(stored.get("at_ms", 0))

    def note(self, last: int, held: Iterable[int], dropped: int, at_ms: int = 0) -> None:
        """One write, so that a kill leaves the old line or the new one; the end of a longer old one follows the line's end."""
        state = (last, tuple(held), dropped, at_ms)
        if state == (self.last, self.held, self.dropped, self.at_ms):
            return
        self.last, self.held, self.dropped, self.at_ms = state
        if self._file >= 0:
            line = json.dumps({"last": last, "held": self.held[-_MOST // 16 :], "dropped": dropped, "at_ms": at_ms})
            with contextlib.suppress(OSError):
                os.pwrite(self._file, line.encode() + b"\n", 0)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
