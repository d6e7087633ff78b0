"""What fence agents say of themselves, read from real programs."""

from __future__ import annotations

from pathlib import Path

import pytest

from hasnmp.agents import fence_metadata
from hasnmp.agents.fence_metadata import MetadataError, Parameter

XML = """<?xml version="1.0" ?>
<resource-agent name="fence_bench" shortdesc="A switch of the bench" >
<parameters>
	<parameter name="action" required="1"><content type="string" default="reboot" /></parameter>
	<parameter name="ip" required="1" obsoletes="ipaddr"><content type="string" />
		<shortdesc lang="en">Where the
		switch is</shortdesc></parameter>
	<parameter name="ipaddr" required="1" deprecated="1"><content type="string" /></parameter>
	<parameter name="mode" required="0"><content type="select" default="onoff">
		<option value="onoff" /><option value="cycle" /></content></parameter>
</parameters>
<actions>
	<action name="on" on_target="1" automatic="1" /><action name="off" /><action name="status" /><action name="off" />
</actions>
</resource-agent>
"""


def agent(folder: Path, name: str, body: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def test_everything_that_a_configuration_is_judged_by_is_read() -> None:
    found = fence_metadata.parse(XML.encode())
    assert (found.name, found.description) == ("fence_bench", "A switch of the bench")
    assert found.actions == ("on", "off", "status") and found.on_target == ("on",)
    assert [p.name for p in found.required()] == ["ip"], "action is ours, and ipaddr is the old name of ip"
    assert found.parameter("ip") == Parameter("ip", "string", True, None, "Where the switch is")
    assert found.parameter("ipaddr") == Parameter("ipaddr", "string", True, deprecated=True, instead="ip")
    assert found.parameter("mode") == Parameter("mode", "select", False, "onoff", choices=("onoff", "cycle"))
    assert found.parameter("colour") is None


@pytest.mark.parametrize(
    ("octets", "why"),
    [
        (b"", "not XML"),
        (b"usage: fence_ack_manual <nodename>", "not XML"),
        (b"<html></html>", "begins with <resource-agent>, this with <html>"),
        (b'<!DOCTYPE a [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><resource-agent>&b;</resource-agent>', "entities"),
        (b"<resource-agent>" + b" " * (1 << 20) + b"</resource-agent>", "longer than 1 MiB"),
    ],
)
def test_what_is_no_metadata_is_refused_with_its_reason(octets: bytes, why: str) -> None:
    with pytest.raises(MetadataError, match=why):
        fence_metadata.parse(octets)


def test_agents_are_found_in_path_and_programs_that_do_not_answer_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    (tmp_path / "xml").write_text(XML)
    path = agent(tmp_path, "fence_bench", f'[ "$1 $2" = "-o metadata" ] && cat {tmp_path}/xml')
    agent(tmp_path, "fence_hangs", "exec sleep 60")
    agent(tmp_path, "fence_broken", "echo no; exit 3")
    agent(tmp_path, "fence_watchdog", "exit 0")
    (tmp_path / "fence_text").write_text("no program")
    assert fence_metadata.find("fence_bench") == fence_metadata.find(str(path)) == str(path)
    names = fence_metadata.installed()
    assert {"fence_bench", "fence_hangs", "fence_broken"} <= set(names)
    assert not {"fence_text", "fence_watchdog", "fence_ack_manual"} & set(names), "they fence nobody"
    assert fence_metadata.read("fence_bench").actions == ("on", "off", "status")
    for name, why in (
        ("fence_hangs", "no answer within 0.3 s"),
        ("fence_broken", "exit status 3"),
        ("fence_text", "not installed.*/usr/sbin"),
    ):
        with pytest.raises(MetadataError, match=why):
            fence_metadata.read(name, 0.3)


def test_the_agents_of_the_package_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # a daemon's PATH may be without /usr/sbin
    ifmib = fence_metadata.read("fence_ifmib")
    assert [p.name for p in ifmib.required()] == ["ip", "plug"]
    assert {"off", "on", "status", "monitor"} <= set(ifmib.actions) and "reboot" not in ifmib.actions
    assert "on" in fence_metadata.read("fence_scsi").on_target
    method = fence_metadata.read("fence_ipmilan").parameter("method")
    assert method is not None and method.choices == ("onoff", "cycle") and method.default == "onoff"
