"""A reader of the control socket beside a daemon of a newer version: it shows what it knows, and what it does not know is
`unknown`, or is left out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hasnmp.model import GroupRow, GroupState, Reason
from hasnmp.protocol import Mirror, ProtocolError, decode
from tests.wire.test_recorded import NEWEST


def recorded(kind: str) -> dict[str, Any]:
    lines = [decode(line.encode()) for line in json.loads((NEWEST / "control.json").read_text())]
    return next(line for line in lines if line["type"] == kind)


def test_what_is_new_does_not_hide_what_is_known() -> None:
    known, later = Mirror(), Mirror()
    message = recorded("snapshot")
    known.apply(message)
    message["later"] = 1
    message["tables"]["sensors"] = {"a": {"x": 1}}
    for rows in message["tables"].values():
        for row in rows.values():
            row["later"] = [1, {"y": 2}]
    [number, *_] = message["tables"]["events"]
    message["tables"]["events"]["999"] = {**message["tables"]["events"][number], "id": 999, "kind": "somethingNew"}
    later.apply(message)
    assert later.view.tables == known.view.tables and later.complete


def test_a_word_of_a_newer_version_is_unknown() -> None:
    mirror = Mirror()
    mirror.apply(recorded("snapshot"))
    delta = recorded("delta")
    delta["rows"]["groups"]["web"] |= {"state": 77, "last_reason": 99}
    delta["rows"]["sensors"] = {"a": {}}
    mirror.apply(delta)
    web = mirror.view.tables["groups"]["web"]
    assert isinstance(web, GroupRow) and (web.state, web.last_reason) == (GroupState.UNKNOWN, Reason.NONE)
    event = recorded("event")
    event["event"]["kind"] = "somethingNew"
    before = dict(mirror.view.tables["events"])
    assert mirror.apply(event) is None and mirror.view.tables["events"] == before


@pytest.mark.parametrize("state", ["running", None, [5], {}])
def test_what_is_no_word_at_all_is_malformed(state: Any) -> None:
    mirror = Mirror()
    mirror.apply(recorded("snapshot"))
    delta = recorded("delta")
    delta["rows"]["groups"]["web"]["state"] = state
    before = mirror.view.tables["groups"]["web"]
    with pytest.raises(ProtocolError):
        mirror.apply(delta)
    assert mirror.view.tables["groups"]["web"] == before
