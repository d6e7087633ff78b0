"""Where the agent answers: several listeners, IPv4 and IPv6, and virtual addresses that come and go with their group."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runtime.netns import Cable, inside, ip
from tests.snmp.snmp_lab import (
    GET,
    READ,
    AgentProcess,
    Answer,
    FakeEngine,
    a_config,
    a_pdu,
    a_view,
    binding,
    v2c,
    wait_for,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")

UP_TIME = (1, 3, 6, 1, 2, 1, 1, 3, 0)
VIRTUAL, VIRTUAL6 = "192.0.2.100", "2001:db8::100"


@pytest.fixture
def cable() -> Iterator[Cable]:
    made = Cable()
    yield made
    made.remove()


def answers(cable: Cable, address: str, port: int) -> bool:
    """Does it answer, and from that address? A connected socket takes nothing from another."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with inside(cable.client), socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.3)
        try:
            sock.connect((address, port))
            sock.send(v2c(a_pdu(GET, [binding(UP_TIME)]), READ))
            return Answer(sock.recv(65535)).status == 0
        except OSError:
            return False


def test_an_answer_leaves_from_where_it_was_asked_and_virtual_addresses_come_and_go(
    cable: Cable, tmp_path: Path
) -> None:
    own = ("192.0.2.1:1161", "[2001:db8::1]:1161")
    config = a_config(tmp_path, listen=(*own, f"{VIRTUAL}:1161", f"[{VIRTUAL6}]:1161", "0.0.0.0:1162", "[::]:1162"))
    engine = FakeEngine(Path(config.control.socket), a_view())
    with inside(cable.server):
        agent = AgentProcess(config)

    def address(action: str, text: str) -> None:
        ip(
            "-n",
            cable.server,
            "addr",
            action,
            text,
            "dev",
            "srv0",
            *(["nodad"] if ":" in text and action == "add" else []),
        )

    try:
        for place, port in (("192.0.2.1", 1161), ("2001:db8::1", 1161), ("192.0.2.1", 1162), ("2001:db8::1", 1162)):
            wait_for(lambda place=place, port=port: answers(cable, place, port))
        assert not answers(cable, VIRTUAL, 1161)
        for round_ in (1, 2):  # the second time, too
            address("add", f"{VIRTUAL}/24")
            address("add", f"{VIRTUAL6}/64")
            for place in (VIRTUAL, VIRTUAL6, "192.0.2.1", "2001:db8::1"):
                wait_for(lambda place=place: answers(cable, place, 1161))
                wait_for(lambda place=place: answers(cable, place, 1162))  # by the wildcard, from the same address
            address("del", f"{VIRTUAL}/24")
            address("del", f"{VIRTUAL6}/64")
            said = f'"{VIRTUAL}:1161"' if '"address"' in agent.log.read_text() else f"{VIRTUAL}:1161"
            # It waited before the first time, and after each.
            wait_for(
                lambda round_=round_, said=said: sum(
                    "listen_waiting" in line and said in line for line in agent.log.read_text().splitlines()
                ) == round_ + 1
            )  # fmt: skip
            assert answers(cable, "192.0.2.1", 1161)
        assert "listen_failed" not in agent.log.read_text()
    finally:
        status = agent.stop()
        engine.stop()
    assert status == 0, agent.log.read_text()
