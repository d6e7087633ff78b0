"""What every version of the formats said is still understood: the folders of recorded/ were written by record.py, each by its
version, and are never written again. What this version says today is what it said when it was recorded, octet for octet.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hasnmp import protocol
from hasnmp.config import load
from hasnmp.core.context import Context
from hasnmp.core.engine import Engine
from hasnmp.core.events import Persist, Started
from hasnmp.core.exchange import Stream
from hasnmp.model import TABLES
from hasnmp.runtime import store
from hasnmp.settings import Config
from hasnmp.wire import (
    VERSION,
    Datagram,
    DatagramKind,
    GroupEntry,
    GroupFlag,
    NodeFlag,
    Signer,
    Slot,
    SlotState,
    slot_from_bytes,
    slot_to_bytes,
)

RECORDED = Path(__file__).parent / "recorded"
VERSIONS = sorted((path for path in RECORDED.iterdir() if path.is_dir()), key=lambda path: int(path.name))
NEWEST = RECORDED / str(VERSION)
WALL = 1_750_000_500_000  # a while after what was recorded
NOW = 900_000_000_000

every_version = pytest.mark.parametrize("folder", VERSIONS, ids=lambda path: path.name)


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def config(folder: Path) -> Config:
    return load(str(folder / "cluster.yaml"), strict_files=False)


def datagram(values: dict[str, Any]) -> Datagram:
    """The datagram that those values mean; what they do not name has its default."""
    given = dict(values)
    groups = tuple(
        GroupEntry(g["group"], GroupFlag(g["flags"]), g["token"], g["duration_ms"]) for g in given.pop("groups")
    )
    kind, flags, payload = DatagramKind(given.pop("kind")), NodeFlag(given.pop("flags")), given.pop("payload").encode()
    return Datagram(kind=kind, flags=flags, payload=payload, groups=groups, **given)


def test_this_version_is_recorded() -> None:
    """Else: python -m tests.wire.record"""
    assert [int(path.name) for path in VERSIONS] == list(range(1, VERSION + 1))
    kinds = {each["values"]["kind"] for each in read(NEWEST, "datagrams.json")["datagrams"]}
    assert kinds == {int(kind) for kind in DatagramKind}
    assert {each["values"]["state"] for each in read(NEWEST, "slots.json")["slots"]} == {int(s) for s in SlotState}
    payloads = [each["values"]["payload"] for each in read(NEWEST, "datagrams.json")["datagrams"]]
    keys = {key.partition("/")[0] for payload in payloads if payload for key, _ in json.loads(payload)}
    assert keys >= {"r", "g", "s", "n", "c", "a", "v"}


@every_version
def test_datagrams(folder: Path) -> None:
    record = read(folder, "datagrams.json")
    signer = Signer(record["cluster"], (bytes.fromhex(record["key"]),))
    for each in record["datagrams"]:
        octets, meant = bytes.fromhex(each["octets"]), datagram(each["values"])
        assert signer.decode(octets, meant.receiver) == meant
        if folder == NEWEST:
            assert signer.encode(meant) == octets


@every_version
def test_slots(folder: Path) -> None:
    record = read(folder, "slots.json")
    for each in record["slots"]:
        v = each["values"]
        meant = Slot(**{**v, "state": SlotState(v["state"])})
        octets = bytes.fromhex(each["octets"])
        assert slot_from_bytes(octets, record["uuid"], record["cluster"], v["group"], v["node"]) == meant
        if folder == NEWEST:
            assert slot_to_bytes(meant, record["uuid"], record["cluster"]) == octets


@every_version
def test_facts(folder: Path) -> None:
    """Every fact that one node ever told another is taken in whole by an engine of today."""
    engine = started(folder, None)
    told = 0
    for each in read(folder, "datagrams.json")["datagrams"]:
        if not each["values"]["payload"]:
            continue
        for key, value in Stream().take(1, each["values"]["payload"].encode()):
            engine.talk._fact(engine.state.peers["bob"], key, value)
            told += 1
    assert told > 5 and engine.state.journal.totals().rejected_malformed == 0
    facts, board = engine.state.board.groups, engine.state.board
    assert facts["web"].failovers and facts["web"].token and facts["db"].reason_text
    assert board.services["db"].node in ("ada", "bob") and board.services["db"].transitions
    assert board.registers.get("inhibit", "web") == "what if"
    assert engine.state.peer_docs["bob"]["version"] == "1.0"


@every_version
def test_control_socket(folder: Path) -> None:
    """A reader of today understands every line; what a writer of today says of the same has all that it said then."""
    mirror = protocol.Mirror()
    for line in read(folder, "control.json"):
        message = protocol.decode(line.encode())
        got = mirror.apply(message)
        if message["type"] == "snapshot":
            again = protocol.decode(protocol.encode(protocol.snapshot(mirror.view)))
            assert holds(again, message) == ""
            filled = {table for table, rows in mirror.view.tables.items() if rows}
            assert filled == set(message["tables"]) & set(TABLES)
        elif message["type"] == "delta":
            assert mirror.view.number == 42 and "nodeLost/bob" not in mirror.view.tables["alarms"]
        elif message["type"] in ("event", "reply"):
            assert got is not None
            assert holds(protocol.row_to_json(got), message["event" if message["type"] == "event" else "command"]) == ""
    assert mirror.complete


def holds(today: Any, then: Any, where: str = "") -> str:
    """What of `then` is not, or is otherwise, in `today`; "" for nothing. Fields may have been added since."""
    today = list(today) if isinstance(today, tuple) else today
    if isinstance(then, dict):
        missing = [f"{where}/{key} is missing" for key in then if key not in today]
        return (missing or [""])[0] or next((x for k in then if (x := holds(today[k], then[k], f"{where}/{k}"))), "")
    return "" if today == then else f"{where}: {today!r} is not {then!r}"


def started(folder: Path, document: dict[str, Any] | None) -> Engine:
    engine = Engine(config(folder), "ada", "1.0")
    engine.step(Started(5, "f" * 16, "boot", 7, WALL, durable=document), NOW)
    return engine


@every_version
@pytest.mark.parametrize("name", ["state-owner.json", "state-left.json"])
def test_state_files(folder: Path, name: str) -> None:
    """An engine of today goes on with a state file of then, and forgets nothing that stands in it."""
    document, fault = store.parse((folder / name).read_bytes())
    assert document is not None and fault == ""
    engine = Engine(config(folder), "bob" if name == "state-left.json" else "ada", "1.0")
    effects = engine.step(Started(5, "f" * 16, "boot", 7, WALL, durable=document), NOW)
    [new] = [effect.document for effect in effects if isinstance(effect, Persist)]
    assert new["ceiling"] >= document["ceiling"] > 0
    assert engine.state.ceiling == document["ceiling"]
    for kept in ("forever", "last_owner", "owned"):
        assert new[kept] == document[kept], kept
    assert bool(document["forever"]) is (name == "state-left.json")
    assert {key: list(value) for key, value in new["board"]["registers"].items()} == document["board"]["registers"]
    journal, before = new["journal"], document["journal"]
    # Ages are told anew, by the clock of this start; everything else of a row is as it was.
    for table in ("events", "alarms", "commands"):
        times = ("ns", "since_ns", "asked_ns", "ended_ns")
        for row, was in zip(journal[table], before[table], strict=False):
            assert holds(row, {key: value for key, value in was.items() if key not in times}) == ""
        assert len(journal[table]) >= len(before[table])
    counters = {key: value for key, value in before["statistics"].items() if key not in ("worst_lateness_us", "events")}
    assert holds(journal["statistics"], counters) == ""
    assert journal["last_event"] >= before["last_event"] and journal["last_command"] == before["last_command"]
    for group, facts in document["board"]["groups"].items():
        loaded = engine.state.board.groups[group]
        assert (loaded.token, loaded.failovers, loaded.reason, loaded.fled_ms) == (
            facts[1],
            facts[5],
            facts[7],
            facts[14],
        )


def test_the_context_is_this_start() -> None:
    """The facts of a state file are as old as they are, by the clock of the engine that reads them."""
    document, _ = store.parse((NEWEST / "state-owner.json").read_bytes())
    assert document is not None
    engine = started(NEWEST, document)
    ctx: Context = engine.ctx
    facts = engine.state.board.groups["web"]
    recorded_ms = document["board"]["groups"]["web"][3]
    assert (ctx.now - facts.changed_ns) // 1_000_000 == recorded_ms + WALL - document["board"]["wall_ms"]
