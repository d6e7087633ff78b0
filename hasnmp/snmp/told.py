"""Which event the notifications have come to: a number in a file of run_dir, so that the next agent goes on from there.

The file ends with the machine's uptime and is never synced: it bridges a restart of the agent or of the daemon, no more.
Where it can't be written the number is only remembered.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_DIGITS = 10  # haEventId is an Unsigned32


class Told:
    """last: the event's number; 0 = none is known."""

    def __init__(self, path: Path) -> None:
        self._last = 0
        self._file = -1
        with contextlib.suppress(OSError, ValueError):
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._last = int(os.pread(self._file, _DIGITS, 0) or 0)

    @property
    def last(self) -> int:
        return self._last

    @last.setter
    def last(self, number: int) -> None:
        self._last = number
        if self._file >= 0:
            with contextlib.suppress(OSError):
                os.pwrite(self._file, b"%0*d\n" % (_DIGITS, number), 0)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
