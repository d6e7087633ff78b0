"""What a reload has to stop, what it leaves alone, and what it may not change."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest

from hasnmp import settings
from hasnmp.config import parse
from hasnmp.config_changes import STAGED_TIMES, Changes, compare, in_force, nobody, settled, strangers
from hasnmp.settings import Config

TEXT = """\
cluster: c
nodes:
  a: {links: {lan: 192.0.2.1, x: 198.51.100.1}, fence: [{agent: fence_x, cuts: power}]}
  b: {links: {lan: 192.0.2.2, x: 198.51.100.2}, fence: [{agent: fence_x, cuts: power}]}
heartbeat: {key_files: [k, l]}
arbiter: {type: disk, device: d}
groups:
  web:
    nodes: [a, b]
    services:
      - {name: ip, agent: address, stop_timeout_ms: 1000, options: {ip: 192.0.2.100/24, interface: eth0, reach: [192.0.2.9]}}
      - {name: www, agent: exec, stop_timeout_ms: 2000, options: {command: [/bin/www], env: {A: "1"}, stop_signal: TERM}}
      - {name: feed, agent: passive, stop_timeout_ms: 4000, check: {report_within_ms: 1000}}
  db:
    services:
      - {name: first, agent: exec, stop_timeout_ms: 100, options: {command: [/bin/first]}}
      - {name: disk, agent: filesystem, stop_timeout_ms: 200, options: {device: /dev/x, directory: /x, fstype: xfs}}
      - {name: sql, agent: exec, stop_timeout_ms: 400, options: {command: [/bin/sql]}}
snmp:
  users: [{name: u, auth_file: f}]
  notify: [{to: "192.0.2.5:162", version: 3, user: u}]
log: {level: info}
"""


def read(text: str) -> settings.Config:
    return parse(text, "FILE", "/", strict_files=False)


def changes(*edits: tuple[str, str]) -> Changes:
    text = TEXT
    for old, new in edits:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return compare(read(TEXT), read(text))


def test_nothing_differs() -> None:
    assert changes() == Changes() and changes().text() == "nothing differs"
    assert changes(("log: {level: info}", "log: {format: auto}\n# comment")) == Changes()


@pytest.mark.parametrize(
    ("old", "new", "stopped", "lines"),
    [
        # another program, another address: stopped under the old settings
        ("[/bin/www]", "[/bin/www, -v]", ("www",), ("service www: options",)),
        ('{A: "1"}', '{A: "2"}', ("www",), ("service www: options",)),
        ("192.0.2.100/24", "192.0.2.101/24", ("ip",), ("service ip: options",)),
        ("interface: eth0", "interface: eth1", ("ip",), ("service ip: options",)),
        ("name: www", "name: new", ("www",), ("service www removed", "service new added")),
        # the same, checked, stopped or restarted otherwise: not touched
        ("stop_signal: TERM", "stop_signal: INT", (), ("service www: options",)),
        ("stop_signal: TERM", "stop_command: [/bin/x]", (), ("service www: options",)),
        ("reach: [192.0.2.9]", "reach: []", (), ("service ip: options",)),
        ("{report_within_ms: 1000}", "{report_within_ms: 1001}", (), ("service feed: check",)),
        ("agent: exec, stop_timeout_ms: 2000", "agent: exec, check: {type: tcp, host: 127.0.0.1, port: 1}, critical: false", (),
         ("service www: critical, check, stop_timeout_ms",)),
        ("  db:\n", "  db:\n    failback: automatic\n    failover_limit: {times: 1}\n", (), ("group db: failback, failover_limit",)),
        # what was started after a file system goes with it
        ("fstype: xfs", "fstype: ext4", ("disk", "sql"), ("service disk: options", "service sql: the file system below it")),
        ("[/bin/first]", "[/bin/f]", ("first",), ("service first: options",)),
        ("[/bin/sql]", "[/bin/s]", ("sql",), ("service sql: options",)),
    ],
)  # fmt: skip
def test_services(old: str, new: str, stopped: tuple[str, ...], lines: tuple[str, ...]) -> None:
    found = changes((old, new))
    assert (found.services, found.lines, found.groups, found.needs_apply) == (stopped, lines, (), ())


def test_an_added_service_stops_nothing() -> None:
    found = changes(
        ("      - {name: www", "      - {name: more, agent: exec, options: {command: [/bin/more]}}\n      - {name: www")
    )
    assert found == Changes(("service more added",))


def test_a_service_that_changes_its_group_is_stopped() -> None:
    """Its programs, and what ends them, belong to the group."""
    row = "      - {name: feed, agent: passive, stop_timeout_ms: 4000, check: {report_within_ms: 1000}}\n"
    found = changes((row, ""), ("      - {name: first", f"{row}      - {{name: first"))
    assert found.services == ("feed",)
    assert found.lines == ("service feed moved to group db",)


def test_order_alone_stops_nothing() -> None:
    text = TEXT.splitlines(keepends=True)
    at = next(i for i, line in enumerate(text) if "name: ip" in line)
    text[at], text[at + 1] = text[at + 1], text[at]
    assert compare(read(TEXT), read("".join(text))) == Changes(("group web: order of services",))


def test_groups() -> None:
    head, _, tail = TEXT.partition("  db:\n")
    without = head + "snmp:\n" + tail.partition("snmp:\n")[2]
    removed = compare(read(TEXT), read(without))
    assert (removed.groups, removed.services, removed.lines, removed.stop_ms) == (
        ("db",),
        (),
        ("group db removed",),
        700,
    )
    assert compare(read(without), read(TEXT)) == Changes(("group db added",))


def test_how_long_the_stops_may_take() -> None:
    """Groups are stopped at the same time, the services of one after the other."""
    assert changes(("[/bin/www]", "[x]"), ("192.0.2.100", "192.0.2.101"), ("[/bin/first]", "[x]")).stop_ms == 3000
    assert changes(("level: info", "level: debug")).stop_ms == 0


def test_the_hooks_of_a_group_that_is_removed_have_their_time() -> None:
    old, new = read(TEXT), read(TEXT)
    hooks = tuple(
        settings.Hook(on, ("/bin/hook",), timeout, groups=groups)
        for on, timeout, groups in (
            ("before_stop", 60_000, ()), ("before_stop", 500, ("db",)), ("before_stop", 9000, ("web",)), ("after_stop", 9, ()),
        )
    )  # fmt: skip
    old = replace(old, hooks=hooks)
    assert compare(old, replace(new, groups=new.groups[:1])).stop_ms == 700 + 60_500
    assert compare(old, replace(new, hooks=())).stop_ms == 0


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("cluster: c", "cluster: d", "cluster"),
        ("lan: 192.0.2.1,", "lan: 192.0.2.3,", "nodes.a.links"),
        ("key_files", "dead_after_ms: 2000, key_files", "heartbeat.dead_after_ms"),
        ("key_files", "kill_ms: 151, key_files", "heartbeat.kill_ms"),
        ("device: d", "device: e", "arbiter.device"),
        ("device: d", "device: d, lease_ms: 4000", "arbiter.lease_ms"),
        ("nodes: [a, b]", "nodes: [b, a]", "groups.web.nodes"),
        ("nodes: [a, b]", "nodes: [a]", "groups.web.nodes"),
    ],
)
def test_what_only_apply_may_change(old: str, new: str, what: str) -> None:
    assert changes((old, new)).needs_apply == (what,)


def test_where_groups_nodes_change_without_a_stop() -> None:
    """With a lease disk in_force() makes every step safe. Else their order may: it decides who is preferred; not a tie of two owners
    under `none`."""
    assert changes(("nodes: [a, b]", "nodes: [b, a]")).needs_stop == ()
    assert changes(("nodes: [a, b]", "nodes: [a]")).needs_stop == ()
    texts = TEXT, TEXT.replace("nodes: [a, b]", "nodes: [b, a]"), TEXT.replace("nodes: [a, b]", "nodes: [a]")
    for kind, order in (("none", ("groups.web.nodes",)), ("fence", ())):
        old, ordered, other = (replace(c, arbiter=replace(c.arbiter, type=kind)) for c in map(read, texts))
        assert compare(old, ordered).needs_stop == order
        assert compare(old, other).needs_stop == ("groups.web.nodes",)


def nodes_of(config: Config) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return config.group("web").nodes, config.group("web").also


def test_former_nodes_of_a_group_are_asked_until_all_have_the_file() -> None:
    file = read(TEXT)
    config, webs = in_force(file, {})
    assert config == file and webs == {"web": (("a", "b"),), "db": (("a", "b"),)}
    assert in_force(file, {"web": (("b", "a"),)})[0] == file, "their order is another matter"
    less = read(TEXT.replace("nodes: [a, b]", "nodes: [b]"))
    config, webs = in_force(less, webs)
    assert nodes_of(config) == (("b",), ("a",)) and webs["web"] == (("a", "b"), ("b",)) == config.webs["web"]
    assert config.digest != less.digest and config.goes_with(less.digest) and less.goes_with(config.digest)
    assert not config.goes_with(file.digest) and not nobody(config) and not strangers(config)
    assert compare(file, config).needs_apply == ("groups.web.nodes",) and compare(file, config).needs_stop == ()
    assert in_force(less, webs) == (config, webs), "read once more"
    # Back to what it was before all had it, or on to others: what may be counted on by somebody stays in force.
    back, again = in_force(file, webs)
    assert nodes_of(back) == (("b",), ("a",)) and again["web"] == (("b",), ("a", "b"))
    assert compare(config, back).needs_apply == ("groups.web.nodes",), "another file, though the same nodes are asked"
    other, _ = in_force(read(TEXT.replace("nodes: [a, b]", "nodes: [a]")), webs)
    assert nodes_of(other) == ((), ("a", "b")) and "groups.web.nodes: none of the new nodes" in nobody(other)
    assert settled(config, webs) == (less, {"web": (("b",),), "db": (("a", "b"),)})
    assert compare(config, less).needs_apply == ("groups.web.nodes",)


def test_a_group_that_is_gone_keeps_its_former_nodes() -> None:
    head, _, tail = TEXT.partition("  web:\n")
    without = read(head + "  db:\n" + tail.partition("  db:\n")[2])
    _, webs = in_force(read(TEXT), {})
    _, webs = in_force(without, webs)
    assert settled(without, webs)[1]["web"] == webs["web"] == (("a", "b"),)
    assert nodes_of(in_force(read(TEXT.replace("nodes: [a, b]", "nodes: [b]")), webs)[0]) == (("b",), ("a",))


def test_a_node_that_is_gone_and_may_have_a_group() -> None:
    file = read(TEXT)
    config, _ = in_force(file, {"web": (("a", "z"),)})
    assert nodes_of(config) == (("a",), ("z", "b")) and strangers(config) == "z of web"
    none = replace(file, arbiter=replace(file.arbiter, type="none"))
    assert in_force(none, {"web": (("a", "z"),)}) == (none, {"web": (("a", "b"),), "db": (("a", "b"),)})


def test_a_node_more() -> None:
    more = "  n: {links: {lan: 192.0.2.7, x: 198.51.100.7}, fence: [{agent: fence_x, cuts: power}]}\nheartbeat: "
    found = changes(("heartbeat: ", more))
    assert found.needs_apply == ("nodes", "groups.db.nodes")  # db has every node, as none is named


def test_nodes_that_are_of_no_group_come_and_go() -> None:
    more = "  n: {links: {lan: 192.0.2.7, x: 198.51.100.7}}\nheartbeat: "
    without = TEXT.replace("  db:\n", "  db:\n    nodes: [a, b]\n")
    few, many = read(without), read(without.replace("heartbeat: ", more))
    assert compare(few, many).needs_apply == compare(many, few).needs_apply == ("nodes",)
    assert compare(few, many).needs_stop == compare(many, few).needs_stop == ()
    used = read(without.replace("heartbeat: ", more).replace("nodes: [a, b]", "nodes: [a, n]", 1))
    assert compare(few, used).needs_stop == compare(used, few).needs_stop == ("nodes",)
    fence = [replace(c, arbiter=replace(c.arbiter, type="fence")) for c in (few, many)]
    assert compare(*fence).needs_stop == ("nodes",)


def test_links_change_one_after_the_other() -> None:
    assert changes(("lan: 192.0.2.1,", "lan: 192.0.2.3,")).needs_stop == ()
    assert changes(("lan: 192.0.2.1, x: 198.51.100.1", "lan: 192.0.2.3, x: 198.51.100.3")).needs_stop == (
        "nodes.a.links",
    )
    crossed = changes(("lan: 192.0.2.1,", "lan: 192.0.2.3,"), ("x: 198.51.100.2}", "x: 198.51.100.4}"))
    assert crossed.needs_stop == ("nodes.a.links", "nodes.b.links"), "each keeps one, but not the same"
    more = changes(
        ("x: 198.51.100.1}", "x: 198.51.100.1, y: 203.0.113.1}"),
        ("x: 198.51.100.2}", "x: 198.51.100.2, y: 203.0.113.2}"),
    )
    assert (more.needs_apply, more.needs_stop) == (("nodes.a.links", "nodes.b.links"), ())


def test_another_lease_disk_or_port() -> None:
    assert changes(("device: d", "device: e")).needs_stop == ()
    port = changes(("key_files", "port: 5406, key_files"))
    assert (port.needs_apply, port.needs_stop) == (("heartbeat.port",), ())
    fence = [
        replace(c, arbiter=replace(c.arbiter, type="fence"))
        for c in (read(TEXT), read(TEXT.replace("key_files", "port: 1, key_files")))
    ]
    assert compare(*fence).needs_stop == ("heartbeat.port",)
    none = replace(read(TEXT), arbiter=replace(read(TEXT).arbiter, type="none", device=""))
    assert set(compare(read(TEXT), none).needs_stop) >= {"arbiter.type"} and compare(none, read(TEXT)).needs_stop


def test_every_time_that_the_digest_holds_is_staged() -> None:
    """A reload can't change what promises and leases are counted by."""
    assert set(STAGED_TIMES) == {f.name for f in fields(settings.Heartbeat)} - {"late_after_ms", "keys", "key_files"}


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("log:", "watchdog: /dev/watchdog\nlog:", "watchdog"),
        ("log:", "state_dir: /x\nlog:", "state_dir"),
        ("log:", "run_dir: /run/other\nlog:", "run_dir"),
    ],
)
def test_what_only_a_restart_changes(old: str, new: str, what: str) -> None:
    assert changes((old, new)).needs_restart == (what,)


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("[k, l]", "[l, k]", "heartbeat.key_files"),
        ("key_files", "late_after_ms: 400, key_files", "heartbeat.late_after_ms"),
        ("a: {links: {lan: 192.0.2.1, x: 198.51.100.1}, fence: [{agent: fence_x", "a: {links: {lan: 192.0.2.1, x: 198.51.100.1}, "
         "fence: [{agent: fence_y", "nodes.a.fence"),
        ("192.0.2.5:162", "192.0.2.6:162", "snmp.notify"),
        ("auth_file: f", "auth_file: f, access: operate", "snmp.users"),
        ("level: info", "level: debug", "log.level"),
        ("log:", "events: {keep: 77}\nlog:", "events_keep"),
        ("log:", "recovery: automatic\nlog:", "recovery_automatic"),
        ("log:", "control: {group: wheel}\nlog:", "control.group"),
        ("log:", "fencing: {test_every_s: 60}\nlog:", "fencing.test_every_s"),
    ],
)  # fmt: skip
def test_everything_else_is_reloaded_and_stops_nothing(old: str, new: str, line: str) -> None:
    assert changes((old, new)) == Changes((line,))


def test_a_secret_that_changed_in_its_file_is_a_change() -> None:
    """The path is the same, so only what was read tells; and it is never said."""
    old = read(TEXT)
    keys = replace(old, heartbeat=replace(old.heartbeat, keys=(b"hunter2" * 5,)))
    user = replace(old, snmp=replace(old.snmp, users=(replace(old.snmp.users[0], auth_secret=b"hunter2"),)))
    level = replace(old.nodes[0].fence[0], secrets={"password": "hunter2"})
    fence = replace(old, nodes=(replace(old.nodes[0], fence=(level,)), old.nodes[1]))
    for new, line in ((keys, "heartbeat.key_files"), (user, "snmp.users"), (fence, "nodes.a.fence")):
        assert compare(old, new) == Changes((line,))


def test_every_key_of_the_configuration_is_looked_at() -> None:
    """A field of Config that compare() forgot would be changed by nobody and said by nobody."""
    old = read(TEXT)
    source = Path("hasnmp/config_changes.py").read_text()
    ignored = {
        "source",
        "digest",
        "webs",
    }  # where it came from, and what is made of the rest
    for one in fields(settings.Config):
        assert one.name in ignored or f'"{one.name}"' in source or f".{one.name}" in source, one.name
    assert compare(old, replace(old, source="elsewhere")) == Changes()
