"""A running agent under floods of every kind: it neither dies, leaks nor talks too much, and its own work goes on."""

from __future__ import annotations

import random
import re
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hasnmp.model import GroupState, Verb
from hasnmp.snmp import ber, ha_objects
from hasnmp.snmp.objects import text_index
from hasnmp.snmp.standard import Counters
from hasnmp.snmp.usm import PRIV, Engine, Incoming
from tests.snmp.snmp_lab import (
    BULK,
    GET,
    OPERATE,
    READ,
    V2C_READ,
    AgentProcess,
    FakeEngine,
    a_config,
    a_pdu,
    a_view,
    binding,
    dotted,
    running,
    v2c,
    wait_for,
)  # fmt: skip

COLUMNS = {c.name: (*t.entry_oid, c.number) for t in ha_objects.TABLES for c in t.columns}
STATE, INHIBIT = ((*COLUMNS[name], *text_index("web")) for name in ("haGroupState", "haGroupInhibit"))
REQUEST = a_pdu(GET, [binding((*COLUMNS["haGroupOwner"], *text_index("web")))])


def v3_messages(agent: AgentProcess, config: Any) -> tuple[bytes, bytes, bytes]:
    """A good message, the same with another digest, and one from another time of the engine."""
    engine_id = bytes.fromhex(agent.value([*OPERATE, "-Ox"], "1.3.6.1.6.3.10.2.1.1.0").replace(" ", "").strip('"'))
    boots = int(agent.value(OPERATE, "1.3.6.1.6.3.10.2.1.2.0"))
    seconds = int(agent.value(OPERATE, "1.3.6.1.6.3.10.2.1.3.0"))
    made = []
    for time_s in (seconds, 2**31 - 1):
        manager = Engine(engine_id, boots, lambda now=time_s: now, config.snmp.users, Counters())
        made.append(manager.send(Incoming(5, 1500, True, PRIV, manager.users[b"noc"]), REQUEST, PRIV, reportable=True))
    return made[0], made[0][:-1] + bytes((made[0][-1] ^ 1,)), made[1]


def resident_kb(agent: AgentProcess) -> int:
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{agent.process.pid}/status").read_text())
    assert found
    return int(found[1])


def flood(agent: AgentProcess, message: Callable[[], bytes], seconds: float) -> tuple[int, int]:
    """How many datagrams were sent, and how many octets came back."""
    sent = came = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", agent.port))
        sock.setblocking(False)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for _ in range(50):
                sock.send(message())
                sent += 1
            try:
                while True:
                    came += len(sock.recv(65535))
            except BlockingIOError:
                pass
    return sent, came


def shows(agent: AgentProcess, state: GroupState) -> bool:
    return agent.run("snmpget", [*V2C_READ, "-Oqv"], dotted(STATE)).stdout.strip() == str(int(state))


def test_floods(tmp_path: Path) -> None:
    dice = random.Random(1)
    fake = FakeEngine(tmp_path / "control.sock", a_view())
    config = a_config(tmp_path)
    with running(config) as agent:
        wait_for(lambda: agent.value(V2C_READ, dotted(STATE)) == str(int(GroupState.RUNNING)))
        good, forged, late = v3_messages(agent, config)
        big = v2c(a_pdu(BULK, [binding((1, 3))] * 6000, 0, 50), b"wrong")[:58000]
        nested = b"\x30\x82\xff\xf0" * 4000
        probe = ber.encode(0x30, b"\2\1\3" + ber.encode(0x30, b"\2\1\1\2\2\5\xdc\4\1\4\2\1\3")
                           + ber.encode(4, ber.encode(0x30, b"\4\0\2\1\0\2\1\0\4\0\4\0\4\0"))
                           + ber.encode(0x30, b"\4\0\4\0" + a_pdu(GET, [])))  # fmt: skip
        kinds: dict[str, tuple[Callable[[], bytes], bool]] = {  # message, may it be answered as often as it is asked?
            "wrong community, 58 KB": (lambda: big, False), "junk": (lambda: dice.randbytes(40), False),
            "nested": (lambda: nested, False), "forged": (lambda: forged, False), "late": (lambda: late, False),
            "discovery": (lambda: probe, False), "replayed": (lambda: good, True),
            "asked for much": (lambda: v2c(a_pdu(BULK, [binding((1, 3))], 0, 1000), READ), True),
        }  # fmt: skip
        state = GroupState.RUNNING
        sizes = []
        for _ in range(2):
            for what, (message, free) in kinds.items():
                begun = time.monotonic()
                _, came = flood(agent, message, 0.25)
                if not free:  # 100 Reports a second to one address, none larger than 200 octets
                    assert came <= 100 * 200 * (time.monotonic() - begun + 2), (what, came)
                # The engine is heard and a SET goes through, at once after it as before.
                state = GroupState.STOPPING if state is GroupState.RUNNING else GroupState.RUNNING
                row: Any = fake.view.tables["groups"]["web"]
                fake.change({"groups": {"web": replace(row, state=state)}})
                wait_for(partial(shows, agent, state))
            sizes.append(resident_kb(agent))
        agent.ask("snmpset", OPERATE, dotted(INHIBIT), "i", "1")
        assert fake.commands[-1]["verb"] == Verb.INHIBIT
        assert sizes[1] - sizes[0] < 3000, sizes
        assert "request_failed" not in agent.log.read_text() and "object_read_failed" not in agent.log.read_text()
    fake.stop()
