"""Hooks as real daemons run them: what they are told, their order, failures, hangs, refusals, and a reload that changes them."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from hasnmp.errors import Code, HasnmpError
from hasnmp.model import CommandState, Verb
from tests.client.pair import Pair, wait_for

pytestmark = pytest.mark.serial


class Scene(Pair):
    """Each hook appends what it is told to a file of its node; then it does what the file NODE.EVENT of the folder says."""

    def __init__(self, folder: Path) -> None:
        script = folder / "hook.sh"
        script.write_text(
            "#!/bin/sh\n"
            f"env | grep ^HASNMP_ | sort >{folder}/$HASNMP_NODE_NAME.$HASNMP_EVENT.env\n"
            f'told=$(cat); echo "$told" >>{folder}/$HASNMP_NODE_NAME.told\n'
            f"do={folder}/$HASNMP_NODE_NAME.$HASNMP_EVENT; [ ! -e $do ] || . $do\n"
        )
        script.chmod(0o755)
        kinds = {
            "before_start": True,
            "before_stop": True,
            "after_stop": False,
            "takeover_completed": False,
            "hook_failed": False,
        }
        rows = [
            f"{{on: {on}, run: [{script}], timeout_ms: 2000, required: {str(required).lower()}, groups: [web]}}"
            for on, required in kinds.items()
        ]
        super().__init__(folder, 92, hooks=f"[{', '.join(rows)}]")

    def told(self, node: str) -> list[str]:
        """The events that the node's hooks were told, in order."""
        return [row["event"] for row in self.rows(node)]

    def rows(self, node: str) -> list[dict[str, object]]:
        path = self.folder / f"{node}.told"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def forget(self) -> None:
        for node in self.NODES:
            (self.folder / f"{node}.told").unlink(missing_ok=True)

    def does(self, node: str, on: str, script: str) -> None:
        path = self.folder / f"{node}.{on}"
        if script:
            path.write_text(script + "\n")
        else:
            path.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with Scene(tmp_path_factory.mktemp("h")) as made:
        yield made  # type: ignore[misc]


@pytest.fixture(autouse=True)
def at_home(pair: Scene) -> None:
    for node in pair.NODES:
        for on in ("before_start", "before_stop", "after_stop", "takeover_completed"):
            pair.does(node, on, "")

    def home() -> bool:
        owner = pair.owner("web")
        try:
            if owner == "b":
                pair.command("b", Verb.FAILOVER, "web", "a")
            elif not owner:
                pair.command("a", Verb.SERVICE_CLEAR, "echo")
        except HasnmpError:
            return False
        view = pair.view("a")
        return owner == "a" and view is not None and not view.tables["groups"]["web"].excluded  # type: ignore[union-attr]

    wait_for(home, 40, pair.why)
    # What the last test, or the way home, still has to tell comes first: hooks of events run in their order.
    wait_for(lambda: pair.told("a")[-1:] in ([], ["takeover_completed"], ["hook_failed"]), 10, lambda: pair.told("a"))
    pair.forget()


def test_a_planned_move_is_told_on_both_sides_in_order(pair: Scene) -> None:
    assert pair.command("a", Verb.FAILOVER, "web", "b").code == 0
    wait_for(lambda: len(pair.rows("a")) >= 2 and len(pair.rows("b")) >= 2, 10, pair.why)
    assert pair.told("a") == ["before_stop", "after_stop"] and pair.told("b") == ["before_start", "takeover_completed"]
    stop, gone = pair.rows("a")
    assert (stop["group"], stop["node"], stop["peer"], stop["reason"]) == ("web", "a", "b", "operator")
    assert str(stop["message"]).startswith("ordered by ") and gone["peer"] == "b"
    start, up = pair.rows("b")
    assert int(str(start["token"])) > int(str(stop["token"])) > 0 and up["token"] == start["token"]
    assert up["reason"] == "operator" and "runs on b" in str(up["message"])
    told = dict(line.split("=", 1) for line in (pair.folder / "b.takeover_completed.env").read_text().splitlines())
    assert (
        told["HASNMP_EVENT"] == "takeover_completed"
        and told["HASNMP_NODE_NAME"] == "b"
        and told["HASNMP_GROUP_NAME"] == "web"
    )
    assert told["HASNMP_TOKEN"] == str(up["token"]) and told["HASNMP_SEVERITY"] == "info"


def test_a_required_before_stop_that_fails_keeps_a_wish_and_not_a_must(pair: Scene) -> None:
    pair.does("a", "before_stop", "echo not now; exit 3")
    row = pair.command("a", Verb.FAILOVER, "web", "b")
    assert (row.state, row.code) == (CommandState.FAILED, Code.FAILED)
    assert "web stays on a: required hook before_stop failed" in row.text and "exit status 3" in row.text
    assert pair.owner("web") == "a" and any("not now" in e.message for e in pair.events("a", "hookFailed"))
    row = pair.command("b", Verb.FAILOVER, "web", "b")  # asked at the other node: it learns of it, too
    assert row.state in (CommandState.FAILED, CommandState.REFUSED) and "stays on a" in row.text
    assert pair.told("a").count("before_stop") == 2
    assert pair.command("a", Verb.FORCE_FAILOVER, "web", "b").code == 0
    assert pair.owner("web") == "b" and "hook_failed" in pair.told("a")


def test_a_required_before_start_that_fails_sends_the_group_on(pair: Scene) -> None:
    pair.does("b", "before_start", "exit 1")
    row = pair.command("a", Verb.FAILOVER, "web", "b")
    assert row.state is CommandState.FAILED
    wait_for(lambda: pair.owner("web") == "a", 20, pair.why)
    view = pair.view("a")
    assert view and view.tables["groups"]["web"].excluded == ("b",)  # type: ignore[union-attr]
    assert any("required hook before_start failed" in e.message for e in pair.events("b", "takeoverFailed"))
    pair.command("a", Verb.SERVICE_CLEAR, "echo")


def test_a_hook_that_hangs_is_ended_with_all_that_it_started(pair: Scene) -> None:
    mark = pair.folder / "hangs"
    pair.does("a", "before_stop", f"(trap '' TERM; echo $$ >{mark}; sleep 300) & sleep 300")
    row = pair.command("a", Verb.FAILOVER, "web", "b")
    assert row.state is CommandState.FAILED and "ended by force after 2000 ms" in row.text
    assert pair.owner("web") == "a" and mark.exists()
    wait_for(lambda: not sleeping(pair, "a"), 10, lambda: sleeping(pair, "a"))


def sleeping(pair: Scene, node: str) -> list[int]:
    found = []
    for pid in pair.pids(node):
        try:
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sleep\x00300"):
                found.append(pid)
        except OSError:
            continue
    return found


def test_a_daemon_that_is_stopped_asks_its_hooks_and_stops(pair: Scene) -> None:
    pair.does("a", "before_stop", "exit 1")
    pair.processes["a"].send_signal(signal.SIGTERM)
    assert pair.processes["a"].wait(20) == 0
    assert pair.told("a")[:1] == ["before_stop"]
    wait_for(lambda: pair.owner("web") == "b", 20, pair.why)
    pair.start("a")
    wait_for(lambda: pair.view("a") is not None, 20)


def test_a_reload_changes_hooks(pair: Scene) -> None:
    text = {node: pair.config(node).read_text() for node in pair.NODES}
    for node in pair.NODES:
        pair.config(node).write_text(
            text[node].replace("{on: before_stop,", "{on: node_lost,").replace("required: true", "required: false")
        )
        row = pair.reload(node)
        assert row.code == 0 and "hooks" in row.text, row.text
    pair.does("a", "before_stop", "exit 1")
    # b's engine has just begun: it is able again once its first document is on the disk.
    wait_for(lambda: pair.command("a", Verb.FAILOVER, "web", "b").code == 0, 20, pair.why)
    assert "before_stop" not in pair.told("a")
    for node in pair.NODES:
        pair.config(node).write_text(text[node])
        assert pair.reload(node).code == 0
