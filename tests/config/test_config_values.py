"""What a faultless configuration becomes, what secrets may be, and that the form, the example and the values agree."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from hasnmp import settings, wire
from hasnmp.config import REQUIRED, known_keys, load, parse
from hasnmp.config_fence import is_secret
from hasnmp.config_groups import HEARTBEAT_GROUP, HEARTBEAT_HEAD, HEARTBEAT_MOST
from hasnmp.config_schema import CHECK, CHECK_TYPES, OPTIONS
from hasnmp.errors import ConfigError, WireError
from hasnmp.model import Failback

BASE = Path(__file__).with_name("base.yaml").read_text()
EXAMPLE = Path(__file__).parents[2] / "conf" / "hasnmp.yaml"
MINIMAL = """\
cluster: c
nodes: {a: {links: {lan: 192.0.2.1}}}
heartbeat: {key_files: [k]}
arbiter: {type: disk, device: d}
groups: {g: {services: [{name: s, agent: exec, options: {command: [/bin/true]}}]}}
"""


def read(text: str, **edits: str) -> settings.Config:
    """The configuration of a text, with some of it replaced, without a look at this machine's files."""
    for old, new in edits.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    return parse(text, "FILE", "/etc/hasnmp", strict_files=False)


def lines_of(text: str, base: Path) -> list[str]:
    """The faults of a text whose secrets are looked at, without the folder's name."""
    with pytest.raises(ConfigError) as caught:
        parse(text, "FILE", str(base))
    return [str(fault).replace(f"{base}/", "") for fault in caught.value.faults]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with every secret that BASE names, as they should be."""
    for name, octets in (("heartbeat.key", 32), ("noc.auth", 8), ("noc.priv", 8), ("community", 6)):
        secret = tmp_path / name
        secret.write_bytes(bytes(range(65, 65 + octets)) + b"\n")
        secret.chmod(0o600)
    return tmp_path


# ------------------------------------------------------------------------------------------------------------- values


def test_defaults_are_those_of_settings() -> None:
    config = read(MINIMAL)
    assert config == settings.Config(
        cluster="c",
        nodes=(settings.NodeSettings("a", {"lan": "192.0.2.1"}),),
        heartbeat=settings.Heartbeat(key_files=("/etc/hasnmp/k",)),
        arbiter=settings.Arbiter("disk", device="/etc/hasnmp/d"),
        groups=(
            settings.Group("g", ("a",), (settings.Service("s", "g", "exec", config.groups[0].services[0].options),)),
        ),
        source="FILE",
        digest=config.digest,
    )
    assert config.groups[0].services[0].options == {
        "command": ("/bin/true",), "env": {}, "cwd": "/", "user": "", "oom_score_adjust": 0, "stop_signal": "TERM",
        "stop_command": (),
    }  # fmt: skip


def test_the_forms_defaults_are_the_values_defaults() -> None:
    """Where the form states a default, the dataclass that takes it has the same one."""
    homes: dict[str, Any] = {
        "heartbeat": settings.Heartbeat, "arbiter": settings.Arbiter, "groups.NAME.services[].check": settings.Check,
        "groups.NAME.services[].on_failure": settings.OnFailure, "groups.NAME.services[]": settings.Service,
        "snmp": settings.Snmp, "snmp.throttle": settings.Throttle, "control": settings.Control, "log": settings.Log,
        "": settings.Config, "snmp.notify[]": settings.Receiver, "nodes.NAME.fence[]": settings.FenceLevel,
        "fencing": settings.Fencing, "watchdog": settings.Watchdog,
    }  # fmt: skip
    compared = set()
    for path, key in known_keys().items():
        section, _, name = path.rpartition(".")
        field = {f.name: f for f in dataclasses.fields(homes[section])}.get(name) if section in homes else None
        if field is not None and key.default is not None and key.default is not REQUIRED:
            assert field.default == key.default, path
            compared.add(path)
    assert {"heartbeat.interval_ms", "arbiter.lease_ms", "snmp.throttle.per_minute", "run_dir"} <= compared
    assert len(compared) > 30


def test_every_value_given_arrives() -> None:
    config = read(
        """\
cluster: c-1
nodes:
  a:
    links: {lan: 192.0.2.1, "6": "2001:DB8:0:0::1"}
    fence:
      - {agent: fence_ipmilan, cuts: power, timeout_ms: 1000, action: off, options: {ip: 192.0.2.3, lanplus: true, ssl: false,
         ipport: 623, password_file: secret, identity_file: id, debug-file: ""}}
      - {agent: fence_x, cuts: network}
  b: {links: {"6": "2001:db8::2", lan: 192.0.2.2}}
heartbeat:
  {port: 1, interval_ms: 5, late_after_ms: 6, dead_after_ms: 30, startup_wait_ms: 31, max_clock_drift_ppm: 0, kill_ms: 11,
  key_files: [one, /two]}
arbiter: {type: none, lease_ms: 101, io_timeout_ms: 11, accept_split_brain: true}
groups:
  g:
    nodes: [b]
    failback: automatic
    failover_limit: {times: 0, within_s: 1}
    disk: true
    accept_unfenced_disk: true
    on_stop_failure: block
    services:
      - {name: e, agent: exec, critical: false, start_timeout_ms: 11, stop_timeout_ms: 12,
         options: {command: [sleep, "1"], env: {A: "1"}, cwd: x/, user: root, oom_score_adjust: -9, stop_signal: KILL, stop_command: [/bin/true]},
         check: {type: http, url: "http://[::1]:8080/x", expect: ok, status: 204, every_ms: 20, timeout_ms: 11, fail_after: 2},
         on_failure: {restart: 0, within_s: 1, then: ignore}}
      - {name: t, agent: exec, options: {command: [/bin/true]}, endpoint: {port: 7001},
         check: {type: tcp, host: "::1", port: 7, send: "PING\\r\\n", expect: PONG, every_ms: 2000}}
      - {name: c, agent: exec, options: {command: [/bin/true]}, check: {type: command, command: [/bin/false, "-x"]}}
      - {name: s, agent: exec, options: {command: [/bin/true]},
         check: {type: sql, url: "oracle+oracledb://ha@bank", query: select 1, expect: "1", password_file: f, user: root}}
      - {name: i, agent: address, options: {ip: "2001:DB8::100/64", interface: eth0.5, reach: ["2001:db8::0:1"]}}
      - {name: p, agent: passive, check: {report_within_ms: 100}}
      - {name: f, agent: filesystem, options: {device: UUID=1-2, directory: /mnt/, fstype: xfs, options: "nodev", fsck: preen, unmount: kill}, check: {every_ms: 700}}
recovery: automatic
snmp:
  listen: ["0.0.0.0:161", "[::]:161"]
  views: {web: {include: [haGroupTable, "1.3.*.5"], exclude: [1.3.6.1.2.1.1]}, one: {include: [system]}}
  users: [{name: u, auth: sha256, auth_file: f, access: operate, view: web, write_view: one, from: [192.0.2.0/24]}]
  communities: [{name_file: f, label: old, access: admin, view: one, write_view: web, from: [10.0.0.0/8, "2001:db8::/32", 192.0.2.9]}]
  notify: [{to: "[2001:DB8::5]:162", version: "3", user: u, type: inform, timeout_ms: 70, retries: 2,
            name: console},
           {to: "192.0.2.5:162", version: 2c, community_file: f},
           {to: "192.0.2.6:162", version: 1, community_file: f, type: trap, min_severity: minor, enabled: false}]
  backlog: 11
  authentication_traps: true
  allow_insecure_set: true
  alive_s: 60
  throttle: {same_within_ms: 0, per_minute: 1}
  agentx: ../snmp/master
  agentx_access: operate
fencing: {test_every_s: 0, test_alarm_s: 7}
watchdog: {device: /dev/wd, timeout_s: 3}
clients:
  listen: ["192.0.2.1:5406", "[2001:DB8::1]:5406"]
  keys: [{name: apps, key_files: [f]}, {name: feed, key_files: [f, g], from: [192.0.2.9], report: [p]}]
hooks:
  - {on: before_start, run: [/bin/true, "-x"], timeout_ms: 70, required: true, groups: [g]}
  - {on: node_lost, run: [/bin/false]}
events: {keep: 10}
control: {group: wheel}
state_dir: state
run_dir: /run/x/
log: {format: json, level: debug}
"""
    )
    address = {"ip": "2001:db8::100/64", "interface": "eth0.5", "reach": ("2001:db8::1",)}
    web = settings.MibView("web", ("haGroupTable", "1.3.*.5"), ("1.3.6.1.2.1.1",))
    one = settings.MibView("one", ("system",))
    program = {"command": ("sleep", "1"), "env": {"A": "1"}, "cwd": "/etc/hasnmp/x", "user": "root", "oom_score_adjust": -9, "stop_signal": "KILL",
               "stop_command": ("/bin/true",)}  # fmt: skip
    plain = {"command": ("/bin/true",), "env": {}, "cwd": "/", "user": "", "oom_score_adjust": 0, "stop_signal": "TERM",
             "stop_command": ()}  # fmt: skip
    mount = {"device": "UUID=1-2", "directory": "/mnt", "fstype": "xfs", "options": "nodev", "fsck": "preen",
             "unmount": "kill"}  # fmt: skip
    check = settings.Check
    assert config == settings.Config(
        cluster="c-1",
        nodes=(
            settings.NodeSettings(
                "a", {"lan": "192.0.2.1", "6": "2001:db8::1"},
                (
                    settings.FenceLevel("fence_ipmilan", "power", 1000, "off", {
                        "ip": "192.0.2.3", "lanplus": "1", "ssl": "0", "ipport": "623", "identity_file": "id", "debug-file": "",
                    }, {"password": ""}),
                    settings.FenceLevel("fence_x", "network"),
                ),
            ),
            settings.NodeSettings("b", {"6": "2001:db8::2", "lan": "192.0.2.2"}),
        ),
        heartbeat=settings.Heartbeat(1, 5, 6, 30, 31, 0, 11, (), ("/etc/hasnmp/one", "/two")),
        arbiter=settings.Arbiter("none", "", 101, 11, True),
        groups=(
            settings.Group(
                "g",
                ("b",),
                (
                    settings.Service(
                        "e", "g", "exec", program, False,
                        check("http", 20, 11, 2, url="http://[::1]:8080/x", expect="ok", status=204),
                        11, 12, settings.OnFailure(0, 1, "ignore"),
                    ),
                    settings.Service(
                        "t", "g", "exec", plain,
                        check=check("tcp", 2000, 2000, host="::1", port=7, send="PING\r\n", expect="PONG"),
                        endpoint_port=7001,
                    ),
                    settings.Service("c", "g", "exec", plain, check=check("command", command=("/bin/false", "-x"))),
                    settings.Service(
                        "s", "g", "exec", plain,
                        check=check("sql", url="oracle+oracledb://ha@bank", query="select 1", expect="1", user="root"),
                    ),
                    settings.Service("i", "g", "address", address, check=check("address")),
                    settings.Service("p", "g", "passive", {}, check=check("report", report_within_ms=100)),
                    settings.Service("f", "g", "filesystem", mount, check=check("filesystem", 700, 700)),
                ),
                Failback.AUTOMATIC, 0, 1, True, True, "block",
            ),
        ),
        recovery_automatic=True,
        fencing=settings.Fencing(0, 7),
        watchdog=settings.Watchdog("/dev/wd", 3),
        snmp=settings.Snmp(
            ("0.0.0.0:161", "[::]:161"),
            (settings.SnmpUser("u", "sha256", "", "operate", view=web, write_view=one, networks=("192.0.2.0/24",)),),
            (settings.Community("admin", ("10.0.0.0/8", "2001:db8::/32", "192.0.2.9/32"), b"", "old", one, web),),
            (
                settings.Receiver("[2001:db8::5]:162", "3", "u", type="inform", timeout_ms=70, retries=2, name="console"),
                settings.Receiver("192.0.2.5:162", "2c"),
                settings.Receiver("192.0.2.6:162", "1", min_severity="minor", enabled=False),
            ),
            True, 60, settings.Throttle(0, 1), (web, one), agentx="/etc/snmp/master", agentx_access="operate", backlog=11, authentication_traps=True,
        ),
        clients=settings.Clients(("192.0.2.1:5406", "[2001:db8::1]:5406"), (
            settings.ClientKey("apps"), settings.ClientKey("feed", (), ("192.0.2.9/32",), ("p",)),
        )),
        hooks=(settings.Hook("before_start", ("/bin/true", "-x"), 70, True, ("g",)), settings.Hook("node_lost", ("/bin/false",))),
        control=settings.Control("/run/x/control.sock", "wheel"),
        events_keep=10,
        state_dir="/etc/hasnmp/state",
        run_dir="/run/x",
        log=settings.Log("json", "debug"),
        source="FILE",
        digest=config.digest,
    )  # fmt: skip


def test_no_two_services_share_a_value_that_can_change() -> None:
    text = MINIMAL.replace(
        "options: {command: [/bin/true]}}", "options: {command: [x]}}, {name: t, agent: exec, options: {command: [x]}}"
    )
    one, two = read(text).groups[0].services
    one.options["env"]["A"] = "1"
    assert two.options["env"] == {} == read(MINIMAL).groups[0].services[0].options["env"]


def test_sections_left_empty_have_their_defaults() -> None:
    assert read(MINIMAL + "snmp:\nlog:\nevents: {}\ncontrol: ~\n") == read(MINIMAL)


def test_plain_words_are_text() -> None:
    """YAML 1.1 would make a truth value, a number in base 60 and one in octal of these."""
    text = MINIMAL.replace(
        "options: {command: [/bin/true]}", "options: {command: [x, no, on, 1:30, 1_0, 0b1, =, 2001-01-01]}"
    )
    assert read(text).groups[0].services[0].options["command"] == (
        "x",
        "no",
        "on",
        "1:30",
        "1_0",
        "0b1",
        "=",
        "2001-01-01",
    )
    assert read(MINIMAL + "events: {keep: 0x10}\n").events_keep == 16
    assert read(MINIMAL + "events: {keep: 0o20}\n").events_keep == 16
    assert read(MINIMAL + "events: {keep: 020}\n").events_keep == 20
    assert read(MINIMAL + "events: {keep: +20}\n").events_keep == 20


def test_as_many_groups_as_a_heartbeat_holds() -> None:
    """The bound that check-config holds is the one that wire has."""
    entry = wire.GroupEntry("g" * 10, wire.GroupFlag.ASK, 1)
    signer = wire.Signer("c", (b"k" * 32,))
    most = (HEARTBEAT_MOST - HEARTBEAT_HEAD - 6) // (HEARTBEAT_GROUP + 10)
    for count, fits in ((most, True), (most + 1, False)):
        groups = tuple(dataclasses.replace(entry, group=f"{i:010}") for i in range(count))
        datagram = wire.Datagram(wire.DatagramKind.HEARTBEAT, "one", "two", 1, 1, groups=groups)
        names = "".join(
            f"  '{g.group}': {{services: [{{name: s{g.group}, agent: exec, options: {{command: [x]}}}}]}}\n"
            for g in groups
        )
        text = MINIMAL.splitlines()
        text[1] = "nodes: {one: {links: {l: 192.0.2.1}}, two: {links: {l: 192.0.2.2}}}"
        whole = "\n".join(text[:4]) + "\ngroups:\n" + names
        if fits:
            signer.encode(datagram)
            assert len(read(whole).groups) == count
        else:
            with pytest.raises(WireError, match="oversize"):
                signer.encode(datagram)
            with pytest.raises(ConfigError, match=f"{count} groups make a heartbeat of"):
                read(whole)


# ------------------------------------------------------------------------------------------------------------- digest


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("cluster: bank", "cluster: other"),
        ("lan: 192.0.2.12", "lan: 192.0.2.13"),
        ("interval_ms: 200", "interval_ms: 201"),
        ("dead_after_ms: 1000", "dead_after_ms: 1001"),
        ("dead_after_ms: 1000", "dead_after_ms: 1000\n  kill_ms: 151"),
        ("dead_after_ms: 1000", "dead_after_ms: 1000\n  max_clock_drift_ppm: 9999"),
        ("device: lease", "device: lease2"),
        ("device: lease", "device: lease, lease_ms: 3001"),
        ("device: lease", "device: lease, io_timeout_ms: 501"),
        ("{type: disk, device: lease}", "{type: none, accept_split_brain: true}"),
        ("nodes: [a, b]", "nodes: [b, a]"),
        ("nodes: [a, b]", "nodes: [a]"),
        ("  db:\n", "  db2:\n"),
        ("  db:\n", "  db:\n    disk: true\n    accept_unfenced_disk: true\n"),
        ("level: info}", "level: info}\nwatchdog: /dev/watchdog"),
        ("  a: {links", "  a: {fence: [{agent: fence_x, cuts: network}], links"),
        ("  a: {links: {lan: 192.0.2.11, cross: 2001:db8::11}}\n", ""),
    ],
)
def test_digest_changes_with_what_safety_rests_on(old: str, new: str) -> None:
    text = BASE.replace(old, new)
    if new == "":  # the order of the nodes, which breaks ties
        text = text.replace("heartbeat:\n", old + "heartbeat:\n").replace("  db:\n", "  db:\n    nodes: [a, b]\n")
    assert text != BASE
    assert re.fullmatch("[0-9a-f]{16}", read(text).digest)
    assert read(text).digest != read(BASE).digest


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("lan: 192.0.2.12, cross: 2001:db8::12", "cross: 2001:DB8:0::12, lan: 192.0.2.12"),
        ("interval_ms: 200", "interval_ms: 200\n  late_after_ms: 400"),
        ("level: info", "level: debug"),
        ("    nodes: [a, b]\n", ""),
        ("port: 80", "port: 81"),
        ("key_files: [heartbeat.key]", "key_files: [new.key, heartbeat.key]"),
        ("name: feed", "name: food"),
        ("level: info}", "level: info}\nwatchdog: null\nfencing: {test_every_s: 9}"),
        ("  a: {links", "  a: {fence: [], links"),
        ("  db:\n", "  db:\n    disk: false\n    on_stop_failure: block\n"),
    ],
)
def test_digest_is_the_same_whatever_else_changes(old: str, new: str) -> None:
    assert BASE.count(old) == 1
    assert read(BASE.replace(old, new)).digest == read(BASE).digest


FENCED = BASE.replace(
    "links: {lan", "fence: [{agent: fence_x, cuts: power, options: {ip: 192.0.2.9, password_file: p}}], links: {lan"
)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("fence_x", "fence_y"),
        ("cuts: power", "cuts: disk"),
        ("cuts: power", "cuts: power, timeout_ms: 20001"),
        ("cuts: power", "cuts: power, action: off"),
        ("ip: 192.0.2.9", "ip: 192.0.2.10"),
        (", password_file: p", ""),
        ("level: info}", "level: info}\nwatchdog: /dev/watchdog"),
        ("level: info}", "level: info}\nwatchdog: {device: /dev/watchdog, timeout_s: 11}"),
        ("  db:\n", "  db:\n    disk: true\n"),
        ("  db:\n", "  db:\n    on_stop_failure: fence\n"),
    ],
)
def test_digest_changes_with_fencing(old: str, new: str) -> None:
    other = FENCED.replace(old, new, 1)
    assert other != FENCED
    assert read(other).digest != read(FENCED).digest != read(BASE).digest
    assert read(FENCED.replace("password_file: p", "password_file: q")).digest == read(FENCED).digest


def test_the_digest_of_a_file_without_fencing_is_that_of_the_first_version() -> None:
    """Nodes of both versions must agree while a cluster is upgraded one by one."""
    assert read(BASE).digest == "933eacc10ac262e7"


# ------------------------------------------------------------------------------------------------------------ fencing


def test_what_a_disk_needs() -> None:
    """A group with a filesystem has a disk, if it does not say otherwise; what then may stand for silence."""
    disk = "{name: d, agent: filesystem, options: {device: /dev/sdb, directory: /d, fstype: xfs}}, "
    base = BASE.replace("      - {name: feed", f"      - {disk[:-2]}\n      - {{name: feed")
    with pytest.raises(
        ConfigError, match=r"^FILE:19: groups\.db\.disk: the group has a disk, and nothing keeps a, b from"
    ):
        read(base)
    for old, new, stop in (
        ("  db:\n", "  db:\n    disk: false\n", "block"),
        ("  db:\n", "  db:\n    accept_unfenced_disk: true\n", "block"),
        ("log:", "watchdog: /dev/watchdog\nlog:", "block"),
        ("links: {lan", "fence: [{agent: fence_x, cuts: disk}], links: {lan", "fence"),
    ):
        group = read(base.replace(old, new)).group("db")
        assert (group.disk, group.on_stop_failure) == ("disk: false" not in new, stop), new
        assert not read(base.replace(old, new)).group("web").disk
    one = base.replace("  a: {links", "  a: {fence: [{agent: fence_x, cuts: disk}], links")
    with pytest.raises(ConfigError, match="nothing keeps b from"):
        read(one)
    assert read(one.replace("  db:\n", "  db:\n    nodes: [a]\n")).group("db").on_stop_failure == "fence"


def test_arbiter_fence() -> None:
    config = read(BASE.replace("{type: disk, device: lease}", "{type: fence, lease_ms: 4000}").replace(
        "links: {lan", "fence: [{agent: fence_x, cuts: network}], links: {lan"))  # fmt: skip
    assert config.arbiter == settings.Arbiter("fence", lease_ms=4000)
    assert all(level.cuts == "network" for node in config.nodes for level in node.fence)


def test_the_watchdog_in_its_two_forms() -> None:
    assert read(MINIMAL).watchdog == settings.Watchdog() == read(MINIMAL + "watchdog: ~\n").watchdog
    assert read(MINIMAL + "watchdog: /dev/wd\n").watchdog == settings.Watchdog("/dev/wd", 10)
    assert read(MINIMAL + "watchdog: {device: /dev/wd, timeout_s: 60}\n").watchdog == settings.Watchdog("/dev/wd", 60)


@pytest.mark.parametrize("name", ["password", "passwd", "snmp_priv_passwd", "community", "snmp-community", "token", "api_token",
                                  "secret", "client_secret", "secret_key", "apikey", "hexadecimal_kg", "PASSWORD"])  # fmt: skip
def test_options_that_are_secrets(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize("name", ["password_script", "passwd_script", "identity", "access_key", "key", "auth", "snmp_auth_prot",
                                  "ssh_options", "tlscert", "cookie", "plug", "passwords"])  # fmt: skip
def test_options_that_are_none(name: str) -> None:
    """A file of theirs is a plain option, handed to the agent as it is."""
    assert not is_secret(name)
    text = BASE.replace(
        "  a: {links", f"  a: {{fence: [{{agent: fence_x, cuts: power, options: {{{name}_file: x}}}}], links"
    )
    assert read(text).nodes[0].fence[0].options == {f"{name}_file": "x"}


# ------------------------------------------------------------------------------------------------------------ secrets


def test_a_fence_agents_secret_is_read_from_its_file(home: Path) -> None:
    text = BASE.replace(
        "  a: {links", "  a: {fence: [{agent: fence_x, cuts: power, options: {login: ha, passwd_file: pw}}], links"
    )
    (home / "pw").write_text("hunter2 \u00e9\n")
    (home / "pw").chmod(0o600)
    level = parse(text, "FILE", str(home)).nodes[0].fence[0]
    assert (level.options, level.secrets) == ({"login": "ha"}, {"passwd": "hunter2 \u00e9"})
    assert "hunter2" not in repr(level)
    (home / "pw").chmod(0o644)
    key = "FILE:3: nodes.a.fence[0].options.passwd_file: "
    assert lines_of(text, home) == [f"{key}pw has mode 0644, so others can get at it; run: chmod 600 pw"]
    (home / "pw").chmod(0o600)
    for octets, why in ((b"a\nb\n", "has more than one line"), (b"\xff\n", "is not UTF-8"), (b" a\n", "begins or ends with white space, "
                         "which a fence agent would not see")):  # fmt: skip
        (home / "pw").write_bytes(octets)
        assert lines_of(text, home) == [f"{key}what pw holds {why}; allowed: one line of text"]


def test_secrets_are_read_without_their_newline(home: Path) -> None:
    (home / "c.yaml").write_text(BASE.replace("[heartbeat.key]", f"[heartbeat.key, {home}/noc2]"))
    (home / "noc2").write_bytes(b"\0" * 31 + b"\xff\r\n")
    (home / "noc2").chmod(0o400)
    config = load(str(home / "c.yaml"))
    assert config.heartbeat.keys == (bytes(range(65, 97)), b"\0" * 31 + b"\xff")
    assert config.snmp.users[0].auth_secret == b"ABCDEFGH" == config.snmp.users[0].priv_secret
    assert config.snmp.communities[0].secret == b"ABCDEF"
    assert config.source == str(home / "c.yaml")
    for octets in ("ABCDEF", "ABCDEFGH", "xff"):
        assert octets not in repr(config)


def test_secrets_that_cannot_be_used(home: Path) -> None:
    (home / "heartbeat.key").write_bytes(b"k" * 31 + b"\n")
    (home / "noc.auth").write_bytes(b"1234567\n")
    (home / "noc.priv").chmod(0o640)
    (home / "community").unlink()
    assert lines_of(BASE, home) == [
        "FILE:8: heartbeat.key_files[0]: heartbeat.key holds 31 octets; allowed: 32..4096 "
        "(make one: head -c 32 /dev/urandom | base64)",
        "FILE:24: snmp.users.noc.auth_file: noc.auth holds 7 octets; allowed: 8..255 (RFC 3414, 11.2)",
        "FILE:24: snmp.users.noc.priv_file: noc.priv has mode 0640, so others can get at it; run: chmod 600 noc.priv",
        "FILE:26: snmp.communities[0].name_file: community can't be read (No such file or directory); "
        "allowed: a file that this user can read and nobody else",
    ]


@pytest.mark.parametrize("mode", [0o601, 0o602, 0o604, 0o610, 0o620, 0o640, 0o677])
def test_every_right_of_others_is_a_fault(home: Path, mode: int) -> None:
    (home / "community").chmod(mode)
    assert lines_of(BASE, home) == [
        f"FILE:26: snmp.communities[0].name_file: community has mode 0{mode:03o}, so others can get at it; run: chmod 600 community"
    ]


def test_secrets_that_are_no_files(home: Path) -> None:
    """A pipe would block the reader, a device would be acted on: neither is opened."""
    (home / "noc.auth").unlink()
    os.mkfifo(home / "noc.auth", 0o600)
    (home / "noc.priv").write_bytes(b"x" * 10_000)
    (home / "community").unlink()
    (home / "community").symlink_to("/dev/zero")
    allowed = "is no regular file; allowed: a file that this user can read and nobody else"
    assert lines_of(BASE, home) == [
        f"FILE:24: snmp.users.noc.auth_file: noc.auth {allowed}",
        "FILE:24: snmp.users.noc.priv_file: noc.priv holds more than 4096 octets; allowed: 8..255 (RFC 3414, 11.2)",
        f"FILE:26: snmp.communities[0].name_file: community {allowed}",
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_secret_that_may_not_be_read(home: Path) -> None:
    (home / "community").chmod(0)
    assert "(Permission denied)" in lines_of(BASE, home)[0]


def test_one_community_twice(home: Path) -> None:
    (home / "other").write_bytes((home / "community").read_bytes())
    (home / "other").chmod(0o600)
    text = BASE.replace("    - {name_file: community}\n", "    - {name_file: community}\n    - {name_file: other}\n")
    assert lines_of(text, home) == [
        "FILE:27: snmp.communities[1].name_file: holds the same name as community; a community is given once"
    ]


def test_a_client_may_not_have_the_nodes_own_key(home: Path) -> None:
    """Whoever has it could sign heartbeats."""
    (home / "more.key").write_bytes(bytes(range(65, 97)))
    (home / "apps.key").write_bytes(b"0123456789" * 4)
    for name in ("more.key", "apps.key"):
        (home / name).chmod(0o600)
    keys = "[{name: a, key_files: [apps.key]}, {name: b, key_files: [apps.key, more.key]}]"
    said = lines_of(BASE + f'clients: {{listen: ["192.0.2.11:5406"], keys: {keys}}}\n', home)
    assert [line.partition(" key_files")[0].partition(": a client")[0].partition("; whoever")[0] for line in said] == [
        "FILE:30: clients.keys.b.key_files: apps.key holds a key of a too",
        "FILE:30: clients.keys.b.key_files: more.key holds a key of heartbeat.key_files",
    ]


def test_programs_and_accounts_of_this_machine(home: Path) -> None:
    text = BASE.replace("command: [/bin/sleep", "user: no-such-user, stop_command: [sh], command: [no-such-program")
    assert lines_of(text + "control: {group: no-such-group}\n", home) == [
        'FILE:17: groups.web.services.www.options.command[0]: "no-such-program" is not found on PATH; '
        "allowed: an absolute path, or a program on PATH",
        "FILE:17: groups.web.services.www.options.user: no-such-user is no user of this machine; "
        "run: useradd --system no-such-user",
        "FILE:30: control.group: no-such-group is no group of this machine; run: groupadd --system no-such-group",
    ]


# -------------------------------------------------------------------------------------------------------------- files


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"#" * (2 << 20))
    (tmp_path / "latin").write_bytes(b"cluster: c\n# f\xfcr\n")
    os.mkfifo(tmp_path / "pipe")
    for name, text in (
        (
            "absent",
            "1: file: can't be read (No such file or directory); allowed: a text file of at most 1048576 octets",
        ),
        (".", "1: file: is no regular file; allowed: a text file of at most 1048576 octets"),
        ("pipe", "1: file: is no regular file; allowed: a text file of at most 1048576 octets"),
        ("large", "1: file: has 2097152 octets; allowed: a text file of at most 1048576 octets"),
        ("latin", "2: file: octet 14 is not UTF-8 (invalid start byte); allowed: UTF-8 text"),
        ("a\0b", "1: file: the path holds a zero octet, which no path has"),
    ):
        with pytest.raises(ConfigError) as caught:
            load(f"{tmp_path}/{name}")
        assert str(caught.value) == f"{tmp_path}/{name}:{text}"


def test_a_byte_order_mark_and_windows_lines(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(b"\xef\xbb\xbf" + MINIMAL.replace("\n", "\r\n").encode())
    assert load(str(tmp_path / "c.yaml"), strict_files=False).cluster == "c"


def test_relative_paths_count_from_the_files_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c.yaml").write_text(MINIMAL)
    monkeypatch.chdir(tmp_path)
    assert load("c.yaml", strict_files=False).arbiter.device == str(tmp_path / "d")


# ------------------------------------------------------------------------------------------------ example and reference


def test_the_example_is_valid_and_shows_every_key() -> None:
    config = load(str(EXAMPLE), strict_files=False)
    assert {service.kind for service in config.services()} == {*OPTIONS, "ocf", "systemd"}
    assert {service.check.type for service in config.services()} >= {
        "http",
        "tcp",
        "command",
        "sql",
        "report",
        "address",
        "filesystem",
        "monitor",
    }
    text = EXAMPLE.read_text()
    missing = [path for path in known_keys() if not re.search(rf"\b{re.escape(path.rpartition('.')[2])}:", text)]
    assert missing == []


def test_the_example_shows_the_true_defaults() -> None:
    """The value shown is the default, says its head: for every key that has one and is not marked otherwise."""
    text = EXAMPLE.read_text()
    marked = {"listen", "nodes", "env", "reach", "group", "users", "communities", "notify", "from", "stop_command", "user",
              "priv", "access", "fence", "exclude", "keys", "report", "groups", "hooks"}  # fmt: skip
    shown = 0
    for path, key in known_keys().items():
        name = path.rpartition(".")[2]
        if key.default is None or key.default is REQUIRED or name in marked or key.default == "":
            continue
        value = str(key.default).lower() if isinstance(key.default, bool) else str(key.default)
        assert re.search(
            rf'\b{name}: "?{re.escape(value)}\b' if value[-1:].isalnum() else rf"\b{name}: {value}", text
        ), path
        shown += 1
    assert shown > 30


def test_the_example_with_every_secret_in_place(tmp_path: Path) -> None:
    """Each file that it names, and nothing else, is missing for it to be used."""
    text = EXAMPLE.read_text().replace("/etc/hasnmp/", f"{tmp_path}/").replace("group: hasnmp", "group: root")
    for name in re.findall(rf"{tmp_path}/([a-z.]+)", text):
        (tmp_path / name).write_text(f"{name} 0123456789abcdef0123456789abcdef\n")
        (tmp_path / name).chmod(0o600)
    (tmp_path / "c.yaml").write_text(text)
    config = load(str(tmp_path / "c.yaml"))
    assert len(config.heartbeat.keys) == 1 and config.snmp.notify[1].community


@pytest.mark.parametrize("path", known_keys())
def test_a_wrong_type_is_a_fault_of_that_key(path: str) -> None:
    """No key takes a list of lists; the fault names the key that holds it."""
    document = _document()
    container, name = _place(document, path)
    container[name] = [[["x"]]]
    with pytest.raises(ConfigError) as caught:
        read(json.dumps(document, indent=1))
    assert any(re.search(rf"(^|\.){re.escape(name)}(\[0\])?$", fault.key) for fault in caught.value.faults), str(
        caught.value
    )


def _document() -> Any:
    """A whole document, with a service for each agent and check type."""
    services = [
        {"name": "e", "agent": "exec", "options": {"command": ["x"]}, "check": {}, "on_failure": {}, "endpoint": {}},
        {"name": "a", "agent": "address", "options": {"ip": "192.0.2.9/24", "interface": "e"}, "check": {}},
        {"name": "p", "agent": "passive", "options": {}, "check": {"report_within_ms": 1000}},
        {
            "name": "f",
            "agent": "filesystem",
            "options": {"device": "/dev/d", "directory": "/d", "fstype": "xfs"},
            "check": {},
        },
    ]
    return {
        "cluster": "c",
        "nodes": {"a": {"links": {"l": "192.0.2.1"}, "fence": [{"agent": "fence_x", "cuts": "disk", "options": {}}]}},
        "heartbeat": {"key_files": ["k"]},
        "arbiter": {"type": "disk", "device": "d"},
        "groups": {"g": {"services": services, "failover_limit": {}}},
        "snmp": {
            "views": {"v": {"include": ["system"]}},
            "users": [{"name": "u", "auth_file": "f"}],
            "communities": [{"name_file": "f"}],
            "notify": [{"to": "192.0.2.1:162", "version": 3, "user": "u"}],
            "throttle": {},
        },
        "clients": {"listen": ["192.0.2.1:5406"], "keys": [{"name": "k", "key_files": ["k"]}]},
        "hooks": [{"on": "node_lost", "run": ["x"]}],
        "events": {},
        "fencing": {},
        "watchdog": {"device": "/dev/watchdog"},
        "control": {},
        "log": {},
    }


def _place(document: Any, path: str) -> tuple[Any, str]:
    """The container of a key of the reference in that document, and the key's name there."""
    *steps, name = path.split(".")
    agent = re.search(r"\((\w+)\)", path)
    for step in steps:
        if step == "NAME":
            document = next(iter(document.values()))
        elif step == "services[]":
            document = next(s for s in document["services"] if agent is None or s["agent"] == agent[1])
        elif step.endswith("[]"):
            document = document[step[:-2]][0]
        else:
            document = document[step.partition("(")[0]]
    return document, name


def test_every_agent_and_check_type_is_in_the_tables() -> None:
    assert {*OPTIONS, "ocf", "systemd"} == set(CHECK_TYPES)
    types = {word for words in CHECK_TYPES.values() for word in words}
    assert {word for key in CHECK.keys for word in key.only} == types


def test_read_only_copies_are_a_group_for_each_node_and_no_disk() -> None:
    copy = "{name: %s, agent: filesystem, options: {device: /dev/vg/copy, directory: /copy, fstype: ext4, options: 'ro,noload'}}"
    text = MINIMAL[: MINIMAL.index("groups:")].replace("}}}", "}}, b: {links: {lan: 192.0.2.2}}}") + "groups:\n" + "".join(
        f"  copy-{node}: {{nodes: [{node}], services: [{copy % f'copy-{node}'}]}}\n" for node in ("a", "b")
    )  # fmt: skip
    config = parse(text, "FILE", "/", strict_files=False)
    assert [group.disk for group in config.groups] == [False, False]
