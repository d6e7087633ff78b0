"""Records what this version of the formats says to others, and to later versions of itself: python -m tests.wire.record

Run once for each version of the formats, before its release; from then on the folder is read and never written. A cluster
is simulated through a day in its life, and one specimen of each kind of word that falls is kept:

    datagrams.json   octets of datagrams, and the values that they mean
    slots.json       octets of lease slots, and the values that they mean
    control.json     lines of the control socket
    state-*.json     state files: of a node that owns a group, and of one that left in order
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hasnmp import protocol
from hasnmp.config import load
from hasnmp.model import AlarmRow, FenceRow, Verb
from hasnmp.runtime import store
from hasnmp.settings import Config
from hasnmp.simulator.spoken import Grammar
from hasnmp.simulator.storage import Disk
from hasnmp.simulator.what_if import WhatIf
from hasnmp.simulator.world import Network
from hasnmp.wire import VERSION, Datagram, Signer, Slot, SlotState, slot_to_bytes

FOLDER = Path(__file__).parent / "recorded" / str(VERSION)
KEY = bytes(range(32))
UUID = "0b6f4c1e-8a52-4a3f-9d7e-112233445566"
DAY = (
    "db fails", "web-server fails", "service clear web-server", "recover ada", "failover web to ada", "inhibit web",
    "freeze db", "thaw db", "bob standby", "bob online", "service stop db", "service start db", "ada cut", "ada mended",
    "bob leaves",
)  # fmt: skip


def values(thing: Datagram | Slot) -> dict[str, Any]:
    """A datagram or a slot as plain JSON; the payload, which is JSON in UTF-8, as text."""
    plain: dict[str, Any] = asdict(thing)
    if isinstance(thing, Datagram):
        plain["payload"] = thing.payload.decode()
    return plain


def kind_of(d: Datagram) -> tuple[Any, ...]:
    """What makes a datagram worth keeping: its kind, the flags, and what sort of facts it carries."""
    facts = tuple(sorted({key.partition("/")[0] for key, _ in json.loads(d.payload)})) if d.payload else ()
    return (d.kind, int(d.flags), tuple(sorted({int(g.flags) for g in d.groups})), facts)


class Recorder:
    def __init__(self, config: Config) -> None:
        self.datagrams: dict[tuple[Any, ...], Datagram] = {}
        self.slots: dict[tuple[Any, ...], Slot] = {}
        self.what_if = WhatIf(config, {})
        self.network: Network = self.what_if.world.network
        self.disk: Disk = self.what_if.world.disk
        self.send: Callable[[Datagram, str], None] = self.network.send
        self.land: Callable[[Slot, bool], None] = self.disk.end_write
        self.network.send = self.heard  # type: ignore[method-assign]
        self.disk.end_write = self.written  # type: ignore[method-assign]
        self.grammar = Grammar(config)

    def heard(self, datagram: Datagram, link: str) -> None:
        self.datagrams.setdefault(kind_of(datagram), datagram)
        self.send(datagram, link)

    def written(self, slot: Slot, lands: bool) -> None:
        self.slots.setdefault((slot.state, slot.group), slot)
        self.land(slot, lands)

    def live(self) -> None:
        world = self.what_if.world
        for machine in world.machines.values():
            machine.power_on()
        self.what_if.settle()
        for text in DAY:
            for fault in self.grammar.read(text):
                self.what_if.strike(fault)
            world.run_until(world.now + 6_000_000_000)
            if text == "recover ada":  # a command at a node that has to pass it on
                self.what_if.order(Verb.FAILOVER, "db", at="ada")
                world.run_until(world.now + 6_000_000_000)
        for state in SlotState:  # what this day did not see
            self.slots.setdefault((state, "web"), Slot("web", "bob", 12, state, "00112233445566ff", 7, 3000))

    def state(self, node: str, name: str) -> None:
        document = self.what_if.world.machines[node].store.document
        assert document is not None
        store.save(str(FOLDER / name), 7, document.encode())


def control(recorder: Recorder) -> list[str]:
    """What the engine's socket says to a reader, and a reader to it."""
    view = recorder.what_if.world.machines["ada"].engine.view()
    assert view is not None
    view.number = 41
    view.tables["fences"]["bob/1"] = FenceRow("bob", 1, "fence_ipmilan", "power", "off, verified", 5, 6)
    event = next(iter(view.tables["events"].values()))
    alarm = AlarmRow("nodeLost/bob", event.kind, event.severity, "ada", "bob", 3, 4, 5, "bob is silent")  # type: ignore[union-attr]
    view.tables["alarms"][alarm.key] = alarm
    command = next(iter(view.tables["commands"].values()))
    rows = {"groups": {"web": protocol.row_to_json(view.tables["groups"]["web"])}}
    delta = {"type": "delta", "number": 42, "now_ns": 5, "wall_ms": 6, "rows": rows, "gone": {"alarms": [alarm.key]}}
    asked = {"type": "command", "id": 1, "verb": 2, "target": "web", "to": "bob", "reason": "why", "requester": "root",
             "up": True, "message": ""}  # fmt: skip
    lines = [
        protocol.snapshot(view), delta, protocol.event(event, alarm, ""),  # type: ignore[arg-type]
        {"type": "reply", "id": 1, "command": protocol.row_to_json(command)}, asked,
        {"type": "why", "id": 2, "group": "web"}, {"type": "why", "id": 2, "lines": ["group web: running"]},
        {"type": "error", "id": None, "text": "verb: 99 is unknown"},
    ]  # fmt: skip
    return [protocol.encode(line).decode().rstrip("\n") for line in lines]


def write(name: str, what: Any) -> None:
    (FOLDER / name).write_text(json.dumps(what, indent=1) + "\n")


def main() -> int:
    if (FOLDER / "datagrams.json").exists():
        print(f"{FOLDER} is recorded already; what was said once is never said otherwise", file=sys.stderr)
        return 1
    config = load(str(FOLDER / "cluster.yaml"), strict_files=False)
    recorder = Recorder(config)
    recorder.live()
    signer = Signer(config.cluster, (KEY,))
    datagrams = [{"octets": signer.encode(d).hex(), "values": values(d)} for d in recorder.datagrams.values()]
    slots = [
        {"octets": slot_to_bytes(s, UUID, config.cluster).hex(), "values": values(s)} for s in recorder.slots.values()
    ]
    write("datagrams.json", {"cluster": config.cluster, "key": KEY.hex(), "datagrams": datagrams})
    write("slots.json", {"cluster": config.cluster, "uuid": UUID, "slots": slots})
    write("control.json", control(recorder))
    recorder.state("ada", "state-owner.json")
    recorder.state("bob", "state-left.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
