"""check-config: the text, and what the fence agents and programs of this machine say to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

TEXT = """\
cluster: bank
nodes:
  a:
    links: {lan: 127.0.0.11}
    fence:
      - {agent: AGENT, cuts: power, options: {OPTIONS}}
  b: {links: {lan: 127.0.0.12}, fence: []}
heartbeat: {key_files: [key]}
arbiter: {type: disk, device: lease.img}
groups:
  web:
    services:
      - {name: httpd, agent: exec, options: {command: [/bin/sleep, "1000"]}}
"""
METADATA = """\
<?xml version="1.0" ?>
<resource-agent name="fence_house" shortdesc="A device"><parameters>
<parameter name="action" required="1"><content type="string" default="reboot" /></parameter>
<parameter name="ip" required="1" obsoletes="ipaddr"><content type="string" /><shortdesc>Where it is</shortdesc></parameter>
<parameter name="ipaddr" required="1" deprecated="1"><content type="string" /></parameter>
<parameter name="vmtype" required="1"><content type="string" default="qemu" /></parameter>
<parameter name="password" required="1" obsoletes="passwd"><content type="string" /></parameter>
<parameter name="passwd" deprecated="1"><content type="string" /></parameter>
</parameters><actions>ACTIONS</actions></resource-agent>
"""
ACTIONS = '<action name="on" /><action name="off" /><action name="status" />'


@pytest.fixture
def check(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run check-config over TEXT with an agent, its options and a machine that has the agents of tmp_path only."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for name in ("key", "pw"):
        (tmp_path / name).write_text("0123456789abcdef0123456789abcdef\n")
        (tmp_path / name).chmod(0o600)

    def call(agent: str, options: str = "", old: str = "\0", new: str = "") -> tuple[int, str, list[str]]:
        file = tmp_path / "hasnmp.yaml"
        file.write_text(TEXT.replace("AGENT", agent).replace("OPTIONS", options).replace(old, new))
        ran = run("check-config", str(file))
        return ran.status, ran.out.replace(f"{tmp_path}/", ""), ran.err.replace(f"{tmp_path}/", "").splitlines()

    return call


def agent(folder: Path, script: str, name: str = "fence_house") -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def tells(folder: Path, metadata: str) -> None:
    (folder / "house.xml").write_text(metadata)
    agent(folder, f'[ "$*" = "-o metadata" ] && exec cat {folder}/house.xml; touch {folder}/acted; exit 1')


GOOD = "hasnmp.yaml: no fault: cluster bank, 2 nodes, 1 group, 1 service\n"
LEVEL = "hasnmp.yaml:6: nodes.a.fence[0]"


def test_options_that_the_agent_has(check: Any, tmp_path: Path) -> None:
    tells(tmp_path, METADATA.replace("ACTIONS", ACTIONS))
    assert check("fence_house", "ip: 192.0.2.1, password_file: pw") == (0, GOOD, [])
    status, _, said = check("fence_house", "ipaddr: 192.0.2.1, passwd_file: pw")
    assert (status, said) == (0, [
        f"note: {LEVEL}.options.ipaddr: an old name of fence_house's; write ip",
        f"note: {LEVEL}.options.passwd_file: an old name of fence_house's; write password_file",
    ])  # fmt: skip
    assert not (tmp_path / "acted").exists()


def test_options_that_it_does_not_have_and_those_that_it_needs(check: Any, tmp_path: Path) -> None:
    tells(tmp_path, METADATA.replace("ACTIONS", '<action name="on" />'))
    status, out, said = check("fence_house", "addr: 192.0.2.1, token_file: pw")
    assert (status, out) == (1, "")
    assert said == [
        f"{LEVEL}.options.addr: fence_house has no option addr; it has: ip, vmtype, password_file",
        f"{LEVEL}.options.token_file: fence_house has no option token; it has: ip, vmtype, password_file",
        f"{LEVEL}.options.ip: missing, and fence_house needs it (Where it is)",
        f"{LEVEL}.options.password_file: missing, and fence_house needs it",
        f"{LEVEL}.agent: fence_house has no action off and no status, so no fence by it can be confirmed: hasnmp switches off, "
        "and then looks whether it is off; it has: on",
        "hasnmp: 5 faults",
    ]


def test_an_agent_that_is_not_here_is_a_note(check: Any) -> None:
    """Only the other nodes fence this one: it may be right that this machine has no such program."""
    status, out, said = check("fence_nowhere", "ip: 192.0.2.1")
    assert (status, out) == (0, GOOD)
    assert said == [
        f"note: {LEVEL}.agent: fence_nowhere is not installed: it is neither in PATH nor in /usr/sbin or /sbin; "
        "Debian has it in fence-agents; its options were not looked at"
    ]


@pytest.mark.parametrize(
    ("script", "why"),
    [("echo no", "not XML: syntax error: line 1, column 0"), ("exit 3", "exit status 3; is it a fence agent?")],
)
def test_an_agent_that_does_not_tell_is_a_note(check: Any, tmp_path: Path, script: str, why: str) -> None:
    agent(tmp_path, script)
    status, _, said = check("fence_house", "ip: 192.0.2.1")
    assert (status, said) == (
        0,
        [f"note: {LEVEL}.agent: fence_house -o metadata: {why}; its options were not looked at"],
    )


def test_the_pill_and_what_ends_nothing(check: Any) -> None:
    assert check("pill")[0] == 0
    status, _, said = check("fence_ack_manual")
    assert status == 1 and said[0].startswith(f"{LEVEL}.agent: fence_ack_manual: it only takes an administrator's word")


def test_an_agent_whose_off_cannot_be_looked_at_is_refused(check: Any, tmp_path: Path) -> None:
    tells(tmp_path, METADATA.replace("ACTIONS", '<action name="off" /><action name="monitor" />'))
    status, _, said = check("fence_house", "ip: 192.0.2.1, password_file: pw")
    assert status == 1 and said[0].startswith(
        f"{LEVEL}.agent: fence_house has no action status, so no fence by it can be confirmed"
    )


def test_what_a_pill_confirms_is_a_note(check: Any) -> None:
    """A group with a disk that hasnmp did not mount: the victim's guardian can't know what of it is still to be written."""
    status, out, said = check("pill", "", "  web:\n", "  web:\n    disk: true\n    accept_unfenced_disk: true\n")
    assert (status, out) == (0, GOOD)
    assert said == [
        f"note: {LEVEL}.agent: confirms only file systems that hasnmp mounts (agent filesystem), and of web hasnmp mounts none; "
        "what is mounted otherwise may still be written by a after it; give a a level that cuts its power for that"
    ]


@pytest.mark.parametrize("cuts", ["disk", "network"])
def test_switching_on_again_what_was_only_cut_off_is_refused(check: Any, tmp_path: Path, cuts: str) -> None:
    tells(tmp_path, METADATA.replace("ACTIONS", ACTIONS))
    options = "ip: 192.0.2.1, password_file: pw"
    status, _, said = check("fence_house", options, "cuts: power", f"cuts: {cuts}, action: reboot")
    assert status == 1 and said[0].startswith(
        f"{LEVEL}.action: reboot needs cuts: power; a level that cuts the {cuts} leaves"
    )
    assert check("fence_house", options, "cuts: power", f"cuts: {cuts}")[0] == 0


def test_a_program_that_is_not_here_is_a_note(check: Any, tmp_path: Path) -> None:
    """It may be on the disk that comes with the group."""
    (tmp_path / "plain").write_text("")
    status, out, said = check(
        "pill", "", '{command: [/bin/sleep, "1000"]}}',
        f"{{command: [/srv/none], stop_command: [{tmp_path}/plain, x]}}, check: {{type: command, command: [/srv/ask]}}}}",
    )  # fmt: skip
    key = "note: hasnmp.yaml:13: groups.web.services.httpd."
    after = "now; right only if it comes with the group, on its disk"
    assert (status, out) == (0, GOOD)
    assert said == [
        f"{key}options.command: /srv/none is not on this machine {after}",
        f"{key}options.stop_command: plain can't be executed {after}",
        f"{key}check.command: /srv/ask is not on this machine {after}",
    ]


def test_a_hook_that_is_not_here_is_a_note(check: Any) -> None:
    hooks = "{on: before_start, run: [/srv/none], required: true}, {on: node_lost, run: [/srv/tell]}, {on: node_lost, run: [cat]}"
    status, out, said = check("pill", "", "groups:\n", f"hooks: [{hooks}]\ngroups:\n")
    assert (status, out) == (0, GOOD)
    assert [line.partition(": hooks")[2] for line in said] == [
        "[0].run: /srv/none is not on this machine: no group that it is for starts on a node without it",
        "[1].run: /srv/tell is not on this machine: it fails on a node without it",
    ]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("fence_ipmilan", "ip: 192.0.2.1, username: ha, lanplus: true, password_file: pw", None),
        ("fence_ipmilan", "ip: 192.0.2.1, user: ha", "options.user: fence_ipmilan has no option user; it has: auth, "),
        ("fence_ifmib", "ip: 192.0.2.1, plug: 3, community_file: pw, snmp_version: 2c", None),
        (
            "fence_ifmib",
            "ip: 192.0.2.1",
            "options.plug: missing, and fence_ifmib needs it (Physical plug number on device",
        ),
        ("fence_sbd", "plug: a", "options.devices: missing, and fence_sbd needs it (SBD Device)"),
        ("fence_pve", "ip: 192.0.2.1, plug: 100, password_file: pw", None),  # login and vmtype have defaults
        ("fence_idrac", "ip: 192.0.2.1, username: ha, password_file: pw", None),  # another name of fence_ipmilan
    ],
)
def test_agents_of_fence_agents(check: Any, name: str, options: str, said: str | None) -> None:
    status, _, lines = check(name, options)
    assert status == (said is not None), lines
    assert (said is None and lines == []) or lines[0].startswith(f"{LEVEL}.{said}"), lines
