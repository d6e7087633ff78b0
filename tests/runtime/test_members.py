"""Which nodes a group has is changed while it runs: real daemons, their files, and what each keeps beside its state."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from hasnmp.errors import Code
from tests.ports import free_port
from tests.runtime.trio import LAN, Trio

pytestmark = pytest.mark.serial


@pytest.fixture
def trio(tmp_path: Path) -> Iterator[Trio]:
    made = Trio(tmp_path)
    try:
        yield made
    finally:
        made.close()


def running(trio: Trio, node: str) -> int:
    """Wait until the service runs there; gives its process."""
    trio.wait(lambda: trio.owner() == node)
    return trio.sleepers(node)[0]


def settled(trio: Trio, *nodes: str) -> bool:
    return all(trio.members(node) == [list("ac")] for node in nodes)


def test_a_group_gets_another_node_while_it_runs(trio: Trio) -> None:
    trio.start()
    pid = running(trio, "a")
    status, said = trio.apply("b", trio.text("a, c"))
    assert status == 0, said
    assert "groups.web.nodes changed" in said
    trio.wait(lambda: settled(trio, "a", "b", "c"))
    assert [trio.file(node).read_text() for node in "abc"] == [trio.text("a, c")] * 3
    assert trio.sleepers("a") == [pid], "it was not touched"
    trio.kill("a")
    assert running(trio, "c"), "which could not have taken it before"


def test_a_node_that_goes_by_the_old_file_is_asked_until_it_has_the_new_one(trio: Trio) -> None:
    """b misses the moment. The others stay between the two, through an end of every process, and the group runs on."""
    trio.start()
    pid = running(trio, "a")
    (trio.folder / "b" / "hasnmp.yaml.new").mkdir()  # b finds the file good, and then can't write it
    assert trio.apply("a", trio.text("a, c"), "--no-wait")[0] == 0
    both = [["a", "b"], ["a", "c"]]
    trio.wait(lambda: trio.members("a") == trio.members("c") == both)
    assert trio.members("b") == [["a", "b"]]
    trio.wait(lambda: "the configuration of b is another one" in " ".join(trio.ask("a", "commands")[1].split()))
    assert trio.sleepers("a") == [pid]
    engine = int((trio.folder / "a" / "run" / "a.engine").read_text().split()[0])
    os.kill(engine, signal.SIGKILL)
    trio.wait(lambda: trio.members("a") == both and trio.tables("a") != {})
    assert trio.sleepers("a") == [pid], "the next engine goes on"
    trio.kill("c")
    trio.start("c")
    trio.wait(lambda: "the configuration of b" in " ".join(trio.ask("c", "alarms")[1].split()))
    assert trio.members("a") == trio.members("c") == both, "the file alone would have said [a, c]"
    (trio.folder / "b" / "hasnmp.yaml.new").rmdir()
    status, said = trio.apply("c", trio.text("a, c"))
    assert status == 0, said
    trio.wait(lambda: settled(trio, "a", "b", "c"))
    assert trio.sleepers("a") == [pid]


def test_a_file_that_is_copied_by_hand_forgets_nobody(trio: Trio) -> None:
    """Two of three start with other nodes for the group than the third has, which had it: they take it from it no sooner than
    what it may have written on the lease disk allows, and go on alone when it has their file."""
    trio.start()
    running(trio, "a")
    for node in "bc":
        trio.file(node).write_text(trio.text("b, c"))
        trio.kill(node)
        trio.start(node)
    trio.wait(lambda: trio.members("b") == trio.members("c") == [["a", "b"], ["b", "c"]])
    assert trio.owner() == "a", "a is asked, and has it"
    status, said = trio.ask("c", "failover", "web", "--to", "c", "--force", "--timeout", "5")
    assert status != 0, said
    trio.kill("a")
    assert running(trio, "b"), "b is one of both"
    trio.file("a").write_text(trio.text("b, c"))
    trio.start("a")
    trio.wait(lambda: all(trio.members(node) == [["b", "c"]] for node in "abc"))
    assert trio.owner() == "b"
    trio.kill("b")
    assert running(trio, "c")


def test_what_can_not_be_applied_is_refused_by_name(trio: Trio) -> None:
    trio.start()
    pid = running(trio, "a")
    status, said = trio.apply("a", trio.text("c"))
    assert status == Code.CONFIG_INVALID and "groups.web.nodes: none of the new nodes is one of the old" in said
    trio.kill("c")
    trio.wait(lambda: trio.apply("a", trio.text("a, c"))[0] == Code.PEER_LOST)
    said = trio.apply("a", trio.text("a, c"))[1]
    assert "c is not there" in said and "start it, then apply again" in said
    assert trio.members("a") == [["a", "b"]] and trio.sleepers("a") == [pid]


def test_a_daemon_does_not_start_without_a_node_that_may_have_the_group(trio: Trio) -> None:
    trio.start()
    running(trio, "a")
    for node in "bc":
        trio.kill(node)
        trio.file(node).write_text(trio.text("b, c", nodes="bc"))
    trio.start("b")
    assert trio.processes["b"].wait(30) == 2
    said = (trio.folder / "b" / "log").read_text()
    path = trio.folder / "b" / "state" / "b.members"
    assert "nodes: a is gone from them, and it may still run web" in said and f"remove {path}, on every node" in said
    trio.kill("a")
    for node in "bc":  # the administrator's word
        (trio.folder / node / "state" / f"{node}.members").unlink()
        trio.start(node)
    assert running(trio, "b")


def test_nodes_come_and_go(trio: Trio) -> None:
    """A node that is none of any group comes with the file, and then into the group; one that is out of all groups goes."""
    trio.start()
    pid = running(trio, "a")
    status, said = trio.apply("a", trio.text("a, b, d", nodes="abcd"))
    assert status == Code.CONFIG_INVALID and "of no group" in said, said
    status, said = trio.apply("b", trio.text("a, b", nodes="abcd"))
    assert status == 0 and "nodes changed" in said, said
    trio.file("d").write_text(trio.text("a, b", nodes="abcd"))
    trio.start("d")
    trio.wait(lambda: trio.apply("c", trio.text("a, d", nodes="abcd"))[0] == Code.CONFIG_INVALID)
    said = trio.apply("c", trio.text("a, d", nodes="abcd"))[1]
    assert "has no place for d; run `hasnmp arbiter init`" in said
    trio.init()
    status, said = trio.apply("c", trio.text("a, d", nodes="abcd"))
    assert status == 0, said
    trio.wait(lambda: all(trio.members(node) == [["a", "d"]] for node in "abcd"))
    said = trio.apply("b", trio.text("a", nodes="abc"))[1]
    assert "d is gone from them, and it may still run web" in said
    status, said = trio.apply("c", trio.text("a, d", nodes="acd"))
    assert status == 0, said
    assert trio.file("b").read_text() == trio.text("a, d", nodes="abcd"), "b knows nothing of it: it is to be stopped"
    assert trio.sleepers("a") == [pid]
    trio.kill("b")
    trio.kill("a")
    assert running(trio, "d")


def test_another_lease_disk(trio: Trio) -> None:
    """It counts when every node reads it; the group runs on, and is taken over by it."""
    trio.start()
    pid = running(trio, "a")
    text = trio.text("a, b", device="lease-2.img")
    status, said = trio.apply("a", text)
    assert status == Code.CONFIG_INVALID and "lease-2.img can't be read (No such file or directory)" in said
    file = trio.folder / "a" / "next.yaml"
    file.write_text(text)
    trio.init(file)
    before = disks(trio)
    assert len(before) == 1
    status, said = trio.apply("b", text)
    assert status == 0 and "arbiter.device changed" in said, said
    trio.wait(lambda: len(disks(trio)) == 1 and not disks(trio) & before)
    assert trio.sleepers("a") == [pid]
    trio.kill("a")
    assert running(trio, "b")


def test_links_change_one_after_the_other(trio: Trio) -> None:
    trio.start()
    pid = running(trio, "a")
    both = trio.text("a, b", cross="127.0.2").replace("lan: 127.0.0", "lan: 127.0.3")
    status, said = trio.apply("a", both)
    assert status == Code.CONFIG_INVALID and "any two nodes keep one that stays as it is" in said
    status, said = trio.apply("a", trio.text("a, b", cross="127.0.2"))
    assert status == 0 and "nodes.c.links changed" in said, said
    trio.wait(lambda: all(addresses(trio, node) == {"127.0.2"} for node in "abc"))
    assert trio.sleepers("a") == [pid]


def test_the_port_changes_everywhere_at_once(trio: Trio) -> None:
    """No longer a cut than the lease disk carries the group over; and only where every node can use the new one."""
    trio.start()
    pid = running(trio, "a")
    text, port = trio.text("a, b"), free_port("::")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind((LAN["b"], port))
        status, said = trio.apply("a", text.replace(f"port: {trio.port}", f"port: {port}"))
    assert status == Code.CONFIG_INVALID, said
    assert f"b: nodes.b.links.lan: {LAN['b']} port {port} can't be used here (Address already in use)" in said
    status, said = trio.apply("a", text.replace(f"port: {trio.port}", f"port: {port}"))
    assert status == 0 and "heartbeat.port changed" in said, said
    trio.wait(
        lambda: all(text.replace(f"port: {trio.port}", f"port: {port}") == trio.file(n).read_text() for n in "abc")
    )
    trio.wait(lambda: all(links(trio, node) == ["up"] * 4 for node in "abc"))
    assert trio.sleepers("a") == [pid]
    trio.kill("a")
    assert running(trio, "b")


def links(trio: Trio, node: str) -> list[str]:
    """How those to the others are."""
    return [row["state"] for row in trio.tables(node).get("links", []) if row["node"] != node]


def addresses(trio: Trio, node: str) -> set[str]:
    """Of the second link to each of the others, while that carries."""
    rows = [row for row in trio.tables(node).get("links", []) if row["link"] == "cross"]
    return {row["address"].rpartition(".")[0] if row["state"] == "up" else row["state"] for row in rows}


def disks(trio: Trio) -> set[str]:
    """The UUIDs of the lease disks that nodes use."""
    return {row["uuid"] for node in "abc" for row in trio.tables(node).get("arbiters", [])}
