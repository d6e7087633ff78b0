"""What OCF agents say of themselves: parsed, kept, and turned into times; of every agent that is installed here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hasnmp import settings
from hasnmp.agents import ocf_metadata
from hasnmp.agents.ocf_metadata import ActionInfo, MetadataError, duration_ms, parse, read, with_times
from hasnmp.config_ocf import ADDRESSES, NEEDS_PROMOTION, PROCESSES, WITHOUT_PROMOTION, outlives, parts
from hasnmp.settings import Check

needs_debian = pytest.mark.skipif(
    not Path("/usr/lib/ocf/resource.d/heartbeat").is_dir(), reason="needs Debian's resource-agents"
)
XML = b"""
<?xml version="1.0"?>
<!DOCTYPE resource-agent SYSTEM "ra-api-1.dtd">
<resource-agent name="db" version="1.0"><version>1.1</version>
<longdesc lang="en">Runs
 a database.</longdesc><shortdesc lang="en">a database</shortdesc>
<parameters>
<parameter name="dir" unique="1" required="1"><longdesc>Where</longdesc><shortdesc>folder</shortdesc><content type="string"/></parameter>
<parameter name="port" unique="0"><content type="integer" default="5432"/></parameter>
<parameter name="ipport"><deprecated><replaced-with name="port"/></deprecated><content type="integer"/></parameter>
</parameters>
<actions>
<action name="start" timeout="2min"/><action name="stop" timeout="90s"/>
<action name="monitor" timeout="30" interval="10s" role="Promoted"/>
<action name="monitor" timeout="40" interval="20s" depth="0"/><action name="monitor" timeout="60s" interval="120s" depth="20"/>
<action name="meta-data" timeout="5"/>
</actions></resource-agent>"""


def test_metadata_is_read() -> None:
    said = parse(XML)
    assert (said.name, said.short, said.long) == ("db", "a database", "Runs a database.")
    folder, port, old = said.parameters
    assert (
        folder.required
        and folder.unique
        and folder.default is None
        and (folder.short, folder.long) == ("folder", "Where")
    )
    assert (port.type, port.default, port.required, port.unique) == ("integer", "5432", False, False)
    assert old.deprecated and old.instead == "port"
    assert said.action("start") == ActionInfo("start", 120_000)
    assert said.action("monitor") == ActionInfo("monitor", 40_000, 20_000), "not that of a promoted one"
    assert said.action("monitor", 20) == ActionInfo("monitor", 60_000, 120_000, 20)
    assert not said.promotable


@pytest.mark.parametrize(
    ("text", "ms"),
    [("20s", 20_000), ("20", 20_000), ("500ms", 500), ("1min", 60_000), ("2m", 120_000), ("1.5h", 5_400_000), (" 3 s ", 3000),
     ("", 0), ("soon", 0), ("5 weeks", 0), ("1e999", 0)],
)  # fmt: skip
def test_times(text: str, ms: int) -> None:
    assert duration_ms(text) == ms


@pytest.mark.parametrize(
    "octets", [b"", b"usage: db {start|stop}", b"<a/>", b'<!DOCTYPE a [<!ENTITY b "c">]><resource-agent/>']
)
def test_what_is_no_metadata_is_refused(octets: bytes) -> None:
    with pytest.raises(MetadataError):
        parse(octets)


def test_times_that_the_file_does_not_give_come_from_the_agent() -> None:
    service = settings.Service("db", "g", "ocf:x:db", {}, check=Check("monitor", every_ms=7000, depth=20), stop_timeout_ms=1234,
                               unset=("start_timeout_ms", "check.timeout_ms"))  # fmt: skip
    filled = with_times(service, parse(XML))
    assert (filled.start_timeout_ms, filled.stop_timeout_ms) == (120_000, 1234)
    assert (filled.check.every_ms, filled.check.timeout_ms, filled.check.depth) == (7000, 60_000, 20)


def make_agent(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> Path:
    monkeypatch.setenv("OCF_ROOT", str(folder))
    path = folder / "resource.d/test/db"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def test_an_answer_is_kept_until_the_agent_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    xml = tmp_path / "xml"
    xml.write_bytes(XML.strip())
    body = f"echo asked >>{tmp_path}/asked; cat {xml}"
    path = make_agent(tmp_path, monkeypatch, body)
    cache = str(tmp_path / "cache")
    assert read("ocf:test:db", cache) == read("ocf:test:db", cache) == parse(XML)
    assert (tmp_path / "asked").read_text() == "asked\n"
    make_agent(tmp_path, monkeypatch, body + "\n# newer")
    os.utime(path)
    read("ocf:test:db", cache)
    assert (tmp_path / "asked").read_text() == "asked\nasked\n"
    for kept in Path(cache).iterdir():
        kept.write_bytes(b"torn")
    assert read("ocf:test:db", cache).name == "db", "what was kept badly is asked for again"


def test_an_agent_that_does_not_tell_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for body, why in (("exit 1", "exit status 1"), ("sleep 9", "no answer within 0.2 s"), ("echo hello", "not XML")):
        make_agent(tmp_path, monkeypatch, body)
        with pytest.raises(MetadataError, match=why):
            read("ocf:test:db", within_s=0.2 if "sleep" in body else 10)
    with pytest.raises(MetadataError, match="No such file"):
        read("ocf:test:none")


def test_a_configuration_is_completed_and_says_what_could_not_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_agent(tmp_path, monkeypatch, f"cat <<'E'\n{XML.decode().strip()}\nE")
    services = tuple(
        settings.Service(name, "g", f"ocf:test:{name}", {}, unset=("start_timeout_ms",)) for name in ("db", "gone")
    )
    config = settings.Config("c", (), settings.Heartbeat(), settings.Arbiter("none"), (settings.Group("g", ("a",), services),),
                             run_dir=str(tmp_path / "run"))  # fmt: skip
    filled, notes = ocf_metadata.complete(config)
    assert [service.start_timeout_ms for service in filled.services()] == [120_000, 20_000]
    assert len(notes) == 1 and "ocf:test:gone" in notes[0] and "default times" in notes[0]


# ------------------------------------------------------------------------------------------ every agent that is here


@needs_debian
def test_every_installed_agent_tells_of_itself() -> None:
    agents = ocf_metadata.installed()
    assert len(agents) > 120
    for agent in agents:
        said = read(agent)
        start, stop, monitor = said.action("start"), said.action("stop"), said.action("monitor")
        assert said.name and start and stop and monitor, agent
        assert start.timeout_ms >= 1000 and stop.timeout_ms >= 1000 and monitor.timeout_ms >= 1000, agent
        assert all(parameter.type in ("string", "integer", "boolean", "select") for parameter in said.parameters), agent
        promoted = parts(agent)[2] in NEEDS_PROMOTION | WITHOUT_PROMOTION
        assert said.promotable is promoted, f"{agent}: is it whole on one node? put it into the table that says so"


@needs_debian
def test_the_tables_name_agents_that_there_are() -> None:
    names = {parts(agent)[2] for agent in ocf_metadata.installed()}
    # In other packages: drbd-utils, and providers' own.
    assert (PROCESSES | ADDRESSES | NEEDS_PROMOTION | WITHOUT_PROMOTION) - names <= {"drbd"}
    assert not PROCESSES & NEEDS_PROMOTION
    assert outlives("ocf:heartbeat:Filesystem") and outlives("ocf:heartbeat:LVM-activate") and outlives("ocf:acme:db")
    assert not outlives("ocf:heartbeat:pgsql") and not outlives("ocf:heartbeat:IPaddr2")
