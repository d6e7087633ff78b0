"""A configuration changed under a running pair: what did not change is not touched, and what can't be changed says so."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hasnmp.errors import Code
from hasnmp.model import CommandState, Kind, ServiceState, Verb
from tests.cluster.conftest import Scene
from tests.cluster.lab import ETC, PROJECT, wait_for
from tests.cluster.onlookers import STREAM, Connection
from tests.cluster.pair import LAN, NODES, PYTHON, VIP, VIP2, Group, Pair
from tests.cluster.watch import PORT

SLEEP = '[/bin/sleep, "100000"]'


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    more = f"      - {{name: idle, agent: exec, options: {{command: {SLEEP}}}}}\n"
    with Pair(groups=(Group("web", VIP, more=STREAM + more),)) as made:
        made.begin()
        yield made


def gone(pair: Pair, pid: int) -> bool:
    """Is there no such process on a? pid: as the host itself counts."""
    return "there" not in pair.lab["a"].run("sh", "-c", f"test -d /proc/{pid} && echo there; true")


@pytest.fixture
def edit(scene: Scene) -> Iterator[Callable[..., None]]:
    """Change the file of both nodes; afterwards it is as before, and in force."""
    file = scene.pair.lab.etc / "hasnmp.yaml"
    before = file.read_text()

    def change(*pairs: tuple[str, str]) -> None:
        text = file.read_text()
        for old, new in pairs:
            assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in the file"
            text = text.replace(old, new)
        file.write_text(text)

    yield change
    file.write_text(before)
    for node in NODES:
        reload(scene.pair, node)


def reload(pair: Pair, node: str, check: bool = True) -> str:
    """`hasnmp reload` on a node: what it says."""
    return pair.hasnmp(node, "reload", check=check)


def reload_both(pair: Pair) -> None:
    for node in NODES:
        reload(pair, node)


def owner(pair: Pair, group: str, node: str = "a") -> str:
    row: Any = pair.rows(node, "groups")[group]
    return str(row.owner)


def program(pair: Pair, name: str, node: str = "a") -> int:
    """The pid of a service, by the engine that runs it."""
    row: Any = pair.rows(node, "services")[name]
    return int(row.pid) if row.state is ServiceState.RUNNING else 0


@pytest.fixture
def held(scene: Scene, edit: Callable[..., None]) -> Iterator[Connection]:
    """A client's connection that must outlive everything."""
    since_ns = time.monotonic_ns()
    with Connection(scene.pair.lab) as connection:
        yield connection
        print(f"longest pause of the connection {connection.worst_ms(since_ns):.0f} ms")


def test_services_are_added_changed_and_removed(scene: Scene, edit: Callable[..., None], held: Connection) -> None:
    pair, since_ns = scene.pair, time.monotonic_ns()
    pids = {name: program(pair, name) for name in ("web-echo", "idle", "web-stream")}
    assert all(pids.values()), pids
    edit(
        (
            "      - {name: idle,",
            f"      - {{name: more, agent: exec, options: {{command: {SLEEP}}}}}\n      - {{name: idle,",
        )
    )
    assert "service more added" in reload(pair, "a")
    wait_for(lambda: program(pair, "more"), 5, pair.why)
    assert {name: program(pair, name) for name in pids} == pids
    reload(pair, "b")
    more = program(pair, "more")
    edit(
        (
            'name: more, agent: exec, options: {command: [/bin/sleep, "100000"]}',
            'name: more, agent: exec, options: {command: [/bin/sleep, "99999"]}',
        )
    )
    assert "service more: options" in reload(pair, "a")
    wait_for(lambda: program(pair, "more") not in (0, more), 5, pair.why)
    assert gone(pair, more), "the old program is gone"
    assert {name: program(pair, name) for name in pids} == pids
    edit(('      - {name: more, agent: exec, options: {command: [/bin/sleep, "99999"]}}\n', ""))
    more = program(pair, "more")
    assert "service more removed" in reload(pair, "a")
    assert gone(pair, more) and "more" not in pair.rows("a", "services")
    reload(pair, "b")
    assert {name: program(pair, name) for name in pids} == pids
    assert not held.failure
    scene.nothing_moved(since_ns)
    pair.wait_steady()


def test_checks_limits_links_snmp_and_log_touch_no_program(
    scene: Scene, edit: Callable[..., None], held: Connection
) -> None:
    pair, since_ns = scene.pair, time.monotonic_ns()
    pids = {name: program(pair, name) for name in ("web-echo", "idle", "web-stream")}
    (pair.lab.etc / "more.auth").write_text("another-word")
    (pair.lab.etc / "more.auth").chmod(0o600)
    edit(
        ("        check: {every_ms: 1000}\n        on_failure: {restart: 1,", "        check: {every_ms: 700, fail_after: 2}\n        on_failure: {restart: 2,"),
        ("failover_limit: {times: 1000,", "failback: automatic\n    failover_limit: {times: 7,"),
        ("  communities:", f"    - {{name: more, auth: sha256, auth_file: {ETC}/more.auth, access: read}}\n  communities:"),
        ("notify: [", f"notify: [{{to: \"192.0.2.50:163\", version: 2c, community_file: {ETC}/community, type: trap}}, "),
        ("level: debug", "level: info"),
    )  # fmt: skip
    said = reload(pair, "a")
    for what in (
        "service web-echo: check, on_failure",
        "group web: failback, failover_limit",
        "snmp.users",
        "snmp.notify",
        "log.level",
    ):
        assert what in said, said
    reload(pair, "b")
    assert {name: program(pair, name) for name in pids} == pids
    row: Any = pair.rows("a", "groups")["web"]
    assert row.failover_limit == 7
    service: Any = pair.rows("a", "services")["web-echo"]
    assert service.restart_limit == 2
    options = ("-v3", "-u", "more", "-l", "authNoPriv", "-a", "SHA-256", "-A", "another-word")
    wait_for(
        lambda: "haNodeName.0 a" in pair.snmp("snmpget", "a", "haNodeName.0", check=False, options=options),
        10,
        pair.why,
    )
    scene.nothing_moved(since_ns)


def test_a_group_is_added_and_removed(scene: Scene, edit: Callable[..., None], held: Connection) -> None:
    pair, since_ns = scene.pair, time.monotonic_ns()
    echo, programs = program(pair, "web-echo"), pair.service_pids("a")
    edit(("\nrecovery: ", Group("db", VIP2).yaml() + "\nrecovery: "))
    reload(pair, "a")
    pair.wait_event("a", Kind.CONFIG_MISMATCH, scene.begun_ns, 5)
    time.sleep(pair.timing.dead_after_ms / 1000)
    assert not owner(pair, "db"), "while the files differ nobody takes the new group"
    pair.hasnmp("a", "arbiter", "init", "--config", f"{ETC}/hasnmp.yaml")
    reload(pair, "b")
    wait_for(lambda: owner(pair, "db") == "a", 10, pair.why)
    pair.wait_steady(homes={"web": "a", "db": "a"})
    assert program(pair, "web-echo") == echo
    answer = pair.lab["client"].run(*PYTHON, "-c", ASK, VIP2, str(PORT), check=False)
    assert answer, "the new address answers"
    edit((Group("db", VIP2).yaml(), ""))
    # The other node first: the owner keeps the group by its promise all the same.
    assert "group db removed" in reload(pair, "b")
    time.sleep(2 * pair.timing.dead_after_ms / 1000)
    assert program(pair, "db-echo") and owner(pair, "db") == "a", pair.why()
    reload(pair, "a")
    assert pair.service_pids("a") == programs, "nothing of db is left, and nothing else was touched"
    assert "db" not in pair.rows("a", "groups") and program(pair, "web-echo") == echo
    scene.nothing_moved(since_ns)
    pair.wait_steady()


ASK = (
    "import socket,sys\n"
    "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(3); s.sendto(b'1', (sys.argv[1], int(sys.argv[2])))\n"
    "print(s.recv(100))\n"
)


def test_a_key_rolls_under_load(scene: Scene, edit: Callable[..., None], held: Connection) -> None:
    pair, since_ns = scene.pair, time.monotonic_ns()
    (pair.lab.etc / "new.key").write_text(os.urandom(32).hex())
    (pair.lab.etc / "new.key").chmod(0o600)
    old, new = f"{ETC}/heartbeat.key", f"{ETC}/new.key"
    edit((f"[{old}]", f"[{new}, {old}]"))
    row = pair.command("a", Verb.RELOAD, "")
    assert (row.state, row.code) == (CommandState.REFUSED, Code.NOT_ALLOWED)
    assert "does not hold the first key" in row.text and "first add that key as the second one" in row.text
    assert pair.alarms("a") == {Kind.CONFIG_REFUSED}
    for before, after in (
        (f"[{new}, {old}]", f"[{old}, {new}]"),
        (f"[{old}, {new}]", f"[{new}, {old}]"),
        (f"[{new}, {old}]", f"[{new}]"),
    ):
        edit((before, after))
        for node in NODES:
            wait_for(lambda node=node: "heartbeat.key_files" in reload(pair, node, check=False), 5, pair.why)  # type: ignore[misc]
    assert not pair.alarms("a")
    scene.nothing_moved(since_ns)
    edit((f"[{new}]", f"[{new}, {old}]"))  # back, the same way
    reload_both(pair)
    edit((f"[{new}, {old}]", f"[{old}, {new}]"))
    wait_for(lambda: "key_files" in reload(pair, "a", check=False), 5, pair.why)
    wait_for(lambda: "key_files" in reload(pair, "b", check=False), 5, pair.why)
    wait_for(lambda: not pair.unsteady(), 10, pair.why)


def test_a_file_with_faults_changes_nothing_and_is_told_whole(
    scene: Scene, edit: Callable[..., None], held: Connection
) -> None:
    pair, since_ns = scene.pair, time.monotonic_ns()
    engine = pair.pids("a", "engine")
    edit(("interval_ms: 200", "intervall_ms: 200"), ("lease_ms: 2000", "lease_ms: 2"))
    said = pair.lab["a"].run(
        "sh", "-c", f"PYTHONPATH={PROJECT} {sys.executable} -m hasnmp.cli reload 2>&1; echo status $?"
    )
    assert "heartbeat.intervall_ms: unknown key" in said and "arbiter.lease_ms: 2 is less than" in said
    assert f"status {int(Code.CONFIG_INVALID)}" in said and "2 faults" in said
    assert not pair.alarms("a"), "the daemon was not even asked"
    pair.lab["a"].signal(signal.SIGHUP, pair.pids("a", "guardian"))
    pair.wait_event("a", Kind.CONFIG_REFUSED, scene.begun_ns, 10)
    row: Any = pair.rows("a", "config")[""]
    assert "intervall_ms: unknown key" in row.error and "2 faults (all are in the log), the first: " in row.error
    wait_for(lambda: "intervall_ms: unknown key" in pair.snmp("snmpget", "a", "haConfigError.0"), 5, pair.why)
    log = (pair.lab["a"].state / "hasnmpd.log").read_text()
    assert log.count("configuration_faulty") == 2
    assert pair.pids("a", "engine") == engine
    scene.nothing_moved(since_ns)


def test_what_only_all_nodes_at_once_may_change(scene: Scene, edit: Callable[..., None], held: Connection) -> None:
    pair, since_ns = scene.pair, time.monotonic_ns()
    engine = pair.pids("a", "engine")
    edit(
        ("dead_after_ms: 1000", "dead_after_ms: 1100"),
        ("nodes: [a, b]", "nodes: [b, a]"),
        ("level: debug", "level: info"),
    )
    row = pair.command("a", Verb.RELOAD, "")
    assert (row.state, row.code) == (CommandState.REFUSED, Code.NEEDS_APPLY)
    assert "heartbeat.dead_after_ms, groups.web.nodes" in row.text
    assert pair.alarms("a") == {Kind.CONFIG_REFUSED} and pair.pids("a", "engine") == engine
    edit(("dead_after_ms: 1100", "dead_after_ms: 1000"), ("nodes: [b, a]", "nodes: [a, b]"))
    reload(pair, "a")
    assert not pair.alarms("a")
    scene.nothing_moved(since_ns)


def test_a_service_that_does_not_stop_in_order_is_ended_by_force(
    scene: Scene, edit: Callable[..., None], held: Connection
) -> None:
    pair = scene.pair
    stubborn = f'      - {{name: stubborn, agent: exec, stop_timeout_ms: 500, options: {{command: {SLEEP}, stop_command: [/bin/sleep, "9"]}}}}\n'
    edit(("      - {name: idle,", f"{stubborn}      - {{name: idle,"))
    reload_both(pair)
    wait_for(lambda: program(pair, "stubborn"), 5, pair.why)
    pid = program(pair, "stubborn")
    edit((stubborn, ""))
    said = reload(pair, "a")  # a stop that takes too long is ended by force, which counts as stopped
    assert "service stubborn removed" in said and gone(pair, pid)
    reload(pair, "b")


def test_nothing_differs(scene: Scene, held: Connection) -> None:
    pair = scene.pair
    engine = pair.pids("a", "engine")
    assert "nothing differs" in reload(pair, "a")
    assert pair.pids("a", "engine") == engine


def test_a_reload_and_the_rest_asked_for_by_snmp_from_the_other_node(edit: Callable[..., None], scene: Scene) -> None:
    """`--host` with the configuration's own user: the words are those of the node, over the agent's own restart, too."""
    pair = scene.pair

    def asked(*words: str) -> str:
        return pair.hasnmp("b", "--config", f"{ETC}/hasnmp.yaml", "--host", "a", *words, check=False)

    wait_for(lambda: "group web: running on a" in asked("why", "web"), 20, lambda: asked("why", "web"))
    edit(("check: {every_ms: 1000}\n        on_failure", "check: {every_ms: 900}\n        on_failure"))
    said = asked("reload", "--reason", "seldom")
    assert "reload: done" in said and "web-echo" in said, said
    row = max(pair.rows("a", "commands").values(), key=lambda row: row.id)
    assert (row.verb, row.state, row.requester) == (Verb.RELOAD, CommandState.DONE, "snmp:noc")
    assert (row.address, row.reason) == (LAN["b"], "seldom")
    assert f"[NOT_PASSIVE={int(Code.NOT_PASSIVE)}]" in asked("report", "idle", "up")
    refused = asked("fence", "confirm", "b", "--yes")  # noc may operate, and no more
    assert f"[NOT_ALLOWED={int(Code.NOT_ALLOWED)}]" in refused
    assert f"[UNSUPPORTED={int(Code.UNSUPPORTED)}]" in asked("apply", f"{ETC}/hasnmp.yaml")
