"""The ring of events over restarts: whole, in order, bounded, and none lost to a damaged line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hasnmp.runtime.event_log import EventLog, merge, read


def document(first: int, last: int, keep: int = 10) -> dict[str, Any]:
    return {"journal": {"keep": keep, "events": [{"id": n, "text": f"event {n}"} for n in range(first, last + 1)]}}


def ids(events: list[dict[str, Any]]) -> list[int]:
    return [e["id"] for e in events]


def test_each_event_is_appended_once(tmp_path: Path) -> None:
    path = str(tmp_path / "events")
    log = EventLog(path)
    log.take(document(1, 3))
    log.take(document(2, 5))
    log.take(document(2, 5))
    EventLog(path).take(document(4, 6))  # a new process goes on where the old one ended
    assert ids(read(path)) == [1, 2, 3, 4, 5, 6]


def test_the_file_is_cut_back_to_what_is_kept(tmp_path: Path) -> None:
    path = str(tmp_path / "events")
    log = EventLog(path)
    for n in range(1, 41):
        log.take(document(n, n))
    kept = ids(read(path))
    assert kept[-1] == 40
    assert 10 <= len(kept) <= 20
    assert kept == list(range(kept[0], 41))


def test_a_restart_gets_the_file_and_the_newest_of_the_document(tmp_path: Path) -> None:
    path = str(tmp_path / "events")
    EventLog(path).take(document(1, 6))
    newest = document(5, 8)
    merge(path, newest)
    assert ids(newest["journal"]["events"]) == [1, 2, 3, 4, 5, 6, 7, 8]
    many = document(5, 8, keep=3)
    merge(path, many)
    assert ids(many["journal"]["events"]) == [6, 7, 8]


def test_a_damaged_line_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "events"
    EventLog(str(path)).take(document(1, 2))
    path.write_bytes(path.read_bytes() + b'{"id": 3, "te')
    EventLog(str(path)).take(document(4, 4))
    assert ids(read(str(path))) == [1, 2, 4]
    merge(str(path), junk := {"journal": []})
    assert junk == {"journal": []}


def test_without_a_writable_place_nothing_is_raised(tmp_path: Path) -> None:
    path = str(tmp_path / "no" / "folder" / "events")
    EventLog(path).take(document(1, 2))
    assert read(path) == []
