"""The fragments of conf/ for a host's snmpd, as they ship: a proxy for reading, one for commands, and AgentX."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hasnmp.model import Verb
from hasnmp.settings import SnmpUser
from hasnmp.snmp import ha_objects
from hasnmp.snmp.oids import ROOT
from tests.snmp.agentx_lab import WRITER, Snmpd, snmpd
from tests.snmp.snmp_lab import (
    AUTH,
    PRIV,
    V2C_READ,
    AgentProcess,
    FakeEngine,
    a_config,
    a_view,
    dotted,
    rows_of,
    running,
    wait_for,
)  # fmt: skip

CONF = Path(__file__).parents[2] / "conf"
HA = dotted(ROOT)
SCALARS = {scalar.name: dotted((*scalar.oid, 0)) for scalar in ha_objects.SCALARS}
NAME, INHIBIT = SCALARS["haNodeName"], SCALARS["haInhibit"]
OUTSIDE = ["-v2c", "-c", "outside"]
# A site's own: who may ask from outside is let in by the view that the fragment adds to.
SITE = ("rocommunity outside 127.0.0.1 -V systemonly", "view systemonly included .1.3.6.1.2.1.1")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[FakeEngine]:
    fake = FakeEngine(tmp_path / "control.sock", a_view())
    yield fake
    fake.stop()


@pytest.fixture
def agent(engine: FakeEngine) -> Iterator[AgentProcess]:
    strong = SnmpUser("noc", "sha256", "aes128", "operate", AUTH.encode(), PRIV.encode())
    with running(a_config(engine.path.parent, users=(strong,))) as process:
        wait_for(lambda: process.value(V2C_READ, NAME) == "alpha")
        yield process


def shows_all(master: Snmpd, agent: AgentProcess) -> None:
    wait_for(lambda: "alpha" in master.run("snmpget", OUTSIDE, NAME).stdout)
    through = rows_of(master.ask("snmpbulkwalk", OUTSIDE, HA))
    assert list(through) == list(rows_of(agent.ask("snmpbulkwalk", V2C_READ, HA)))
    # snmpd answers for itself too, and for what the view does not have not at all.
    assert "STRING" in master.ask("snmpget", OUTSIDE, "1.3.6.1.2.1.1.5.0")
    assert "No Such Object" in master.ask("snmpget", OUTSIDE, "1.3.6.1.2.1.11.1.0")


def test_a_proxy_to_read_through(tmp_path: Path, engine: FakeEngine, agent: AgentProcess) -> None:
    text = (CONF / "snmpd-hasnmp.conf").read_text()
    text = text.replace("hasnmp-local", "look").replace("127.0.0.1:1161", f"127.0.0.1:{agent.port}")
    with snmpd(tmp_path, text, *SITE) as master:
        shows_all(master, agent)
        result = master.run("snmpset", WRITER, INHIBIT, "i", "1")  # the community behind it may read
        assert result.returncode == 2
        assert not engine.commands


def test_a_proxy_to_command_through(tmp_path: Path, engine: FakeEngine, agent: AgentProcess) -> None:
    """The line that the fragment has as a comment, in place of the first one: every SET is one by that user."""
    lines = (CONF / "snmpd-hasnmp.conf").read_text().splitlines()
    first = next(line for line in lines if line.startswith("proxy "))
    second = next(line for line in lines if line.startswith("#proxy "))
    text = "\n".join(line for line in lines if line != first).replace(second, second[1:])
    for example, own in (
        ("AUTH-PASSPHRASE", AUTH),
        ("PRIV-PASSPHRASE", PRIV),
        ("127.0.0.1:1161", f"127.0.0.1:{agent.port}"),
    ):
        assert example in text
        text = text.replace(example, own)
    with snmpd(tmp_path, text, *SITE) as master:
        shows_all(master, agent)
        assert master.run("snmpset", OUTSIDE, INHIBIT, "i", "1").returncode == 2  # snmpd itself refuses this one
        assert not engine.commands
        master.ask("snmpset", WRITER, INHIBIT, "i", "1")
        (command,) = engine.commands
        assert (command["verb"], command["requester"]) == (int(Verb.INHIBIT), "snmp:noc")
        result = master.run("snmpset", WRITER, NAME, "s", "x")
        assert "Reason: notWritable" in result.stderr


def test_agentx(tmp_path: Path, engine: FakeEngine) -> None:
    text = (CONF / "snmpd-hasnmp-agentx.conf").read_text().replace("/var/agentx/master", str(tmp_path / "master"))
    with snmpd(tmp_path, text, *SITE) as master, running(a_config(tmp_path, agentx=master.socket)) as process:
        wait_for(lambda: process.value(V2C_READ, NAME) == "alpha")
        shows_all(master, process)
