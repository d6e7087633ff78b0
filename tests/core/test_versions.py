"""A node of the next version beside one of this: what this one does not know, it leaves alone, and the pair works."""

from __future__ import annotations

import hmac
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hasnmp.config import load
from hasnmp.core.board import Board, GroupFacts, ServiceFacts
from hasnmp.core.context import Context
from hasnmp.core.engine import Engine
from hasnmp.core.events import Persist, Started
from hasnmp.model import GroupState, Proof, Reason, ServiceState, StatisticsRow
from hasnmp.settings import Config
from hasnmp.simulator.spoken import Grammar
from hasnmp.simulator.what_if import WhatIf
from hasnmp.wire import Datagram, GroupFlag, NodeFlag, Signer, Slot, SlotState, slot_from_bytes, slot_to_bytes

CONFIG = Path(__file__).parent.parent / "wire/recorded/1/cluster.yaml"
KEY = bytes(range(32))
UUID = "0b6f4c1e-8a52-4a3f-9d7e-112233445566"


@pytest.fixture
def config() -> Config:
    return load(str(CONFIG), strict_files=False)


# ------------------------------------------------------------------------------------------ the other's words, changed


def longer(value: Any) -> Any:
    """A fact as a newer version might tell it: more at the end of each list, more keys in each object."""
    if isinstance(value, list):
        return [*value, "later", {"deep": [1, None]}, 2]
    return {**value, "later": True} if isinstance(value, dict) else value


def shorter(value: Any) -> Any:
    """A fact as the first version might have told it: no more of a list than every version says."""
    if isinstance(value, list) and len(value) == 15:
        return value[:3]
    return value[:2] if isinstance(value, list) and len(value) == 11 else value


def strange(value: Any) -> Any:
    """Words of enumerations that do not exist yet: a state, a reason, a proof."""
    if isinstance(value, list) and len(value) == 15:
        return [*value[:2], 77, *value[3:7], 88, *value[8:11], 99, *value[12:]]
    return [value[0], 77, *value[2:]] if isinstance(value, list) and len(value) == 11 else value


def changed(payload: bytes, change: Callable[[Any], Any]) -> bytes:
    if not payload:
        return payload
    facts = [
        [key, change(value) if key[:2] in ("g/", "s/", "n/", "r/") else value] for key, value in json.loads(payload)
    ]
    octets = json.dumps([*facts, ["z/later", {"a": [1]}], ["zz", None]], separators=(",", ":")).encode()
    return octets if len(octets) <= 900 else payload


def from_the_future(datagram: Datagram, signer: Signer) -> bytes:
    """The octets of a datagram of a later version that says that this one can read it."""
    groups = tuple(replace(g, flags=GroupFlag(int(g.flags) | 0x4100)) for g in datagram.groups)
    sent = replace(datagram, flags=NodeFlag(int(datagram.flags) | 0x4200), groups=groups, highest=9)
    octets = bytearray(signer.encode(sent)[:-32])
    extension = b"\x07\x00\x05later" + b"\xee\x00\x00"
    octets[72:74] = struct.pack("!H", len(extension))
    size = octets[74] + 1
    names = bytes(octets[74 : 74 + size + 1 + octets[74 + size]])
    octets += extension
    return bytes(octets) + hmac.digest(KEY, b"hasnmp datagram 1" + b"\x04bank" + names + octets, "sha256")


class Pair:
    """The simulated pair; what ada says to bob goes through octets, and is changed on its way."""

    def __init__(self, config: Config, change: Callable[[Any], Any]) -> None:
        self.what_if = WhatIf(config, {})
        self.grammar, self.signer, self.change = Grammar(config), Signer(config.cluster, (KEY,)), change
        network = self.what_if.world.network
        self.send: Callable[[Datagram, str], None] = network.send
        network.send = self.pass_on  # type: ignore[method-assign]
        self.passed = 0
        for machine in self.what_if.world.machines.values():
            machine.power_on()
        self.what_if.settle()

    def pass_on(self, datagram: Datagram, link: str) -> None:
        if datagram.sender == "ada":
            said = replace(datagram, payload=changed(datagram.payload, self.change))
            datagram = self.signer.decode(from_the_future(said, self.signer), "bob")
            assert datagram == replace(said, highest=9)
            self.passed += 1
        self.send(datagram, link)

    def strike(self, text: str) -> None:
        for fault in self.grammar.read(text):
            self.what_if.strike(fault)
        assert self.what_if.settle() is not None

    def served_by(self) -> dict[str, str]:
        return dict(self.what_if.served.by)

    def bob(self) -> Engine:
        core = self.what_if.world.machines["bob"].engine.core
        assert isinstance(core, Engine)
        return core


@pytest.mark.parametrize("change", [longer, shorter, strange], ids=lambda change: change.__name__)
def test_a_pair_of_two_versions_works(config: Config, change: Callable[[Any], Any]) -> None:
    pair = Pair(config, change)
    assert pair.passed > 100 and pair.served_by() == {"web": "ada", "db": "bob"}
    pair.strike("failover db to ada")
    assert pair.served_by() == {"web": "ada", "db": "ada"}
    assert pair.bob().state.board.groups["db"].token == 2
    pair.strike("inhibit web")
    assert pair.bob().state.board.registers.get("inhibit", "web") == "what if"
    pair.strike("permit web")
    pair.strike("ada off")
    assert pair.served_by() == {"web": "bob", "db": "bob"}
    pair.strike("ada on")
    pair.strike("recover ada")
    pair.strike("failover web to ada")
    assert pair.served_by() == {"web": "ada", "db": "bob"}
    view = pair.what_if.world.machines["bob"].engine.view()
    assert view is not None
    statistics = view.tables["statistics"][""]
    assert isinstance(statistics, StatisticsRow) and statistics.rejected_malformed == statistics.rejected_version == 0
    assert getattr(view.tables["nodes"]["ada"], "version", "") == "1.0"


# ------------------------------------------------------------------------------------------ facts, one by one


def context(config: Config) -> Context:
    return Context(config, "bob", 10**12)


def test_facts_of_other_versions(config: Config) -> None:
    ctx = context(config)
    group = GroupFacts(
        "ada", 7, GroupState.RUNNING, 10**11, 3, 2, [5], Reason.OPERATOR, "why", 90, 0, Proof.BOTH, 0, 44, "bob", 9
    )
    want = GroupFacts()
    want.load(group.to_json(ctx.now), ctx)
    for change in (longer, list, tuple):
        facts = GroupFacts()
        facts.load(change(group.to_json(ctx.now)), ctx)
        assert facts == want
    facts = GroupFacts()
    facts.load(strange(group.to_json(ctx.now)), ctx)
    assert facts == replace(want, state=GroupState.UNKNOWN, reason=Reason.NONE, proof=Proof.NONE)
    facts.load(["ada", 7, 5], ctx)
    assert facts == GroupFacts("ada", 7, GroupState.RUNNING, data_ns=ctx.now)
    service = ServiceFacts("ada", ServiceState.RUNNING, 10**11, 3, 2, 1, [5], 10**11, 9, 77, "words")
    served = ServiceFacts()
    served.load(longer(service.to_json(ctx.now)), ctx)
    assert served == replace(service, data_ns=ctx.now)
    served.load(["bob", 4], ctx)
    assert served == ServiceFacts("bob", ServiceState.RUNNING, data_ns=ctx.now)


NO_GROUP: tuple[Any, ...] = (
    None, 5, "abcdefghijklmnop", {}, [], ["ada", 7], ["ada", 7, "five"], ["ada", "x", 5], ["a", 7, True],
)  # fmt: skip
NO_SERVICE: tuple[Any, ...] = (None, 5, "abcdefghijk", {}, [], ["ada"], ["ada", "running"], ["ada", 4, 5, "x"])


@pytest.mark.parametrize(
    ("key", "data"), [*(("g/web", x) for x in NO_GROUP), *(("s/web-server", x) for x in NO_SERVICE)]
)
def test_what_is_no_fact_is_counted_and_changes_nothing(config: Config, key: str, data: Any) -> None:
    engine = started(config, None)
    board = engine.state.board

    def picture() -> Any:
        return board.groups["web"].to_json(10**12), board.services["web-server"].to_json(10**12)

    before = picture()
    engine.talk._fact(engine.state.peers["bob"], key, data)
    assert picture() == before
    assert engine.state.journal.totals().rejected_malformed == 1


# ------------------------------------------------------------------------------------------ what lies on disks


def test_slots_of_a_later_version() -> None:
    slot = Slot("web", "ada", 9, SlotState.HELD, "00112233445566ff", 7, 3000)
    octets = bytearray(slot_to_bytes(slot, UUID, "bank"))
    end = octets.index(b"\x03ada") + 4
    octets[6:8], octets[end : end + 4] = b"\0\4", b"\x09\0\1x"
    octets[508:] = struct.pack("!L", zlib.crc32(bytes(octets[:508])))
    assert slot_from_bytes(bytes(octets), UUID, "bank", "web", "ada") == slot


def started(config: Config, document: dict[str, Any] | None) -> Engine:
    engine = Engine(config, "ada", "1.0")
    engine.step(Started(5, "f" * 16, "boot", 7, 1_750_000_500_000, durable=document), 10**12)
    return engine


def deeper(value: Any) -> Any:
    """A document with something new in every object of it."""
    if isinstance(value, dict):
        return {**{key: deeper(each) for key, each in value.items()}, "later": {"more": [1, {"x": None}]}}
    return [deeper(each) for each in value] if isinstance(value, list) else value


def test_a_state_file_of_a_later_version(config: Config) -> None:
    """After a step back to this version: nothing of what it knows is lost."""
    head, text = (CONFIG.parent / "state-owner.json").read_text().splitlines()
    document = json.loads(text)
    assert json.loads(head)["format"] == 1 and document["journal"]["events"]

    def again(given: dict[str, Any]) -> dict[str, Any]:
        engine = Engine(config, "ada", "1.0")
        effects = engine.step(Started(5, "f" * 16, "boot", 7, 1_750_000_500_000, durable=given), 10**12)
        [new] = [effect.document for effect in effects if isinstance(effect, Persist)]
        return new

    assert again(deeper(document)) == again(document)


def test_a_board_of_a_later_version(config: Config) -> None:
    ctx = context(config)
    board = Board({"web": GroupFacts()}, {"web-server": ServiceFacts()})
    document = board.document(ctx)
    document["groups"]["web"] = longer(document["groups"]["web"])
    document["services"]["web-server"] = strange(document["services"]["web-server"])
    document["groups"]["gone"] = document["services"]["gone"] = "rubbish"
    document["registers"] = {"inhibit/web": [3, "ada", "why", "later"], "bad": 5}
    other = Board({"web": GroupFacts()}, {"web-server": ServiceFacts()})
    other.restore(document, ctx)
    assert other.registers.values == {"inhibit/web": (3, "ada", "why")}
