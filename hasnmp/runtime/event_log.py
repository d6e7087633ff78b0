"""The whole ring of events over restarts. The durable document carries only the newest, for it is written often; here each
event is appended once, by the store's process, and the newest `keep` are read back at a start.

One JSON object a line, oldest first. The file is cut back to `keep` lines whenever it has grown to twice that. A line that
can't be read (a power cut in the middle of it) is left out.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import Any


class EventLog:
    """The store's side. Raises nothing: without this file the document's newest events still survive."""

    def __init__(self, path: str) -> None:
        self._path = path
        kept = read(path)
        self._lines = len(kept)
        self._last = max((e["id"] for e in kept), default=0)
        with suppress(OSError), open(path, "r+b") as file:
            if file.seek(0, os.SEEK_END) and file.seek(-1, os.SEEK_END) and file.read(1) != b"\n":
                file.write(b"\n")  # what follows is not to share the fate of a line that was cut short

    def take(self, document: dict[str, Any]) -> None:
        """Append those of the document's events that are newer than all that was appended before."""
        journal = document.get("journal")
        events = journal.get("events") if isinstance(journal, dict) else None
        if not isinstance(journal, dict) or not isinstance(events, list):
            return
        new = [e for e in events if e["id"] > self._last]
        if not new:
            return
        with suppress(OSError):
            with open(self._path, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(e, separators=(",", ":")) + "\n" for e in new)
            self._lines += len(new)
            self._last = new[-1]["id"]
            keep = int(journal.get("keep") or 0)
            if keep and self._lines > 2 * keep:
                self._cut(keep)

    def _cut(self, keep: int) -> None:
        kept = read(self._path)[-keep:]
        draft = self._path + ".new"
        with open(draft, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(e, separators=(",", ":")) + "\n" for e in kept)
        os.replace(draft, self._path)
        self._lines = len(kept)


def read(path: str) -> list[dict[str, Any]]:
    """The events of the file, oldest first; [] without one. Never raises."""
    events: dict[int, dict[str, Any]] = {}
    with suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            with suppress(ValueError, RecursionError):
                event = json.loads(line)
                if isinstance(event, dict) and isinstance(event.get("id"), int):
                    events[event["id"]] = event
    return [events[number] for number in sorted(events)]


def merge(path: str, document: dict[str, Any]) -> None:
    """Put the file's events in front of the document's own, the newest of which may not have been appended yet."""
    journal = document.get("journal")
    if not isinstance(journal, dict) or not isinstance(journal.get("events"), list):
        return
    own = [e for e in journal["events"] if isinstance(e, dict) and isinstance(e.get("id"), int)]
    first = own[0]["id"] if own else 1 << 62
    keep = journal.get("keep")
    merged = [e for e in read(path) if e["id"] < first] + own
    journal["events"] = merged[-keep:] if isinstance(keep, int) and keep > 0 else merged
