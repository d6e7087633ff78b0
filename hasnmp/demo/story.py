"""What the demo plays, tells and checks: start, walk, power cut, takeover, return, recover, planned failover, end."""

from __future__ import annotations

import http.client
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from hasnmp.arbiters import admin
from hasnmp.config import load
from hasnmp.console.control import Control
from hasnmp.console.report import first, rows_of
from hasnmp.console.tables import Screen, clean
from hasnmp.demo.manager import ManagerError, Trap, TrapReceiver, manager
from hasnmp.demo.stage import DEAD_AFTER_MS, GROUPS, NODES, SERVED, Stage
from hasnmp.errors import HasnmpError, Refused, Unreachable
from hasnmp.model import (
    EventRow,
    GroupRow,
    GroupState,
    Kind,
    LinkRow,
    LinkState,
    NodeRow,
    NodeState,
    Role,
    Severity,
    SystemRow,
    View,
)

PATIENCE_S = 12.0  # for any step; what is measured is said
READING_S = 1.5  # between the steps, for somebody who reads along
TAKEOVER_BOUND_MS = DEAD_AFTER_MS + 2500  # and time for claim, start and a busy machine
PLANNED_BOUND_MS = 1500


class Differed(HasnmpError):
    """Something did not happen as it must."""


class Follower:
    """A node's view, kept up over its death and return; every event of it is handed on."""

    def __init__(self, path: str, take: Callable[[EventRow], None]) -> None:
        self.view: View | None = None
        self._path, self._take = path, take
        self._ending = False
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        seen: set[tuple[int, int]] = set()
        while not self._ending:
            try:
                control = Control(self._path)
            except Unreachable:
                self.view = None
                time.sleep(0.02)
                continue
            try:
                while not self._ending:
                    self.view = control.view()
                    # From the table, not from the messages: so the first events of a start are told as well.
                    for event in rows_of(self.view, "events", EventRow):
                        if (event.id, event.wall_ms) not in seen:
                            seen.add((event.id, event.wall_ms))
                            self._take(event)
                    control.receive(time.monotonic() + 0.2)
            except HasnmpError:
                self.view = None
            finally:
                control.close()

    def close(self) -> None:
        self._ending = True
        self._thread.join()


class Story:
    """The acts, in the order of `play`. Each raises Differed (or ManagerError) with what differed."""

    def __init__(self, stage: Stage, screen: Screen) -> None:
        self.stage, self.screen = stage, screen
        self.manager = manager(stage)
        self.checks = 0
        self.traps: list[Trap] = []
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._followers: dict[str, Follower] = {}
        self._receiver = TrapReceiver(stage.ports.trap, self._take_trap)

    def close(self) -> None:
        for follower in self._followers.values():
            follower.close()
        self._receiver.close()
        self.manager.close()

    # ------------------------------------------------------------------------------------------------------- telling

    def say(self, who: str, text: str, meaning: str = "") -> None:
        with self._lock:
            head = self.screen.paint(f"{time.monotonic() - self._began:7.3f} s  {who:<11}", "dim")
            print(f"{head}{self.screen.paint(clean(text), meaning)}", flush=True)

    def act(self, title: str) -> None:
        with self._lock:
            print(f"\n{self.screen.paint(title, 'strong')}", flush=True)

    def check(self, text: str, good: bool, found: object = "") -> None:
        """A fact that must hold. Raises Differed."""
        if not good:
            raise Differed(f"{text}: {found}" if found != "" else f"not so: {text}")
        self.checks += 1
        self.say("ok", text, "good")

    def _take_event(self, event: EventRow) -> None:
        meaning = {Severity.CLEARED: "good", Severity.INFO: ""}.get(event.severity, "warn")
        self.say(event.node, f"{event.kind.value}: {event.message}", meaning)

    def _take_trap(self, trap: Trap) -> None:
        self.traps.append(trap)
        names = {"haEventNode": "from", "haEventGroup": "of group", "haEventPeer": "about", "haEventLink": "over"}
        said = [f"{names[name]} {trap.variables[name]}" for name in names if trap.variables.get(name)]
        self.say("trap", f"{trap.kind.value} {' '.join(said)}", "dim")

    # ------------------------------------------------------------------------------------------------------- waiting

    def view(self, node: str) -> View | None:
        follower = self._followers.get(node)
        return follower.view if follower else None

    def wait(self, text: str, true: Callable[[], bool]) -> float:
        """Until it is true. Returns how long that took, in seconds. Raises Differed: it did not come to be."""
        began = time.monotonic()
        while not true():
            if time.monotonic() - began > PATIENCE_S:
                raise Differed(f"waited {PATIENCE_S:.0f} s in vain: {text}")
            for node, process_ended in [(n, self.stage.ended(n)) for n in self._followers]:
                if process_ended is not None and node not in self._dead:
                    raise Differed(f"hasnmpd of {node} ended with {process_ended} while waiting: {text}")
            time.sleep(0.005)
        return time.monotonic() - began

    _dead: frozenset[str] = frozenset()

    def runs(self, group: str, node: str, seen_from: str) -> bool:
        """Does this view say that the group runs there, whole?"""
        view = self.view(seen_from)
        row = view.tables["groups"].get(group) if view else None
        return isinstance(row, GroupRow) and (row.owner, row.state) == (node, GroupState.RUNNING)

    def trapped(self, kind: Kind, node: str, since: int) -> bool:
        """Has this trap of that node come since the mark?"""
        return any(trap.kind is kind and trap.variables.get("haEventNode") == node for trap in self.traps[since:])

    def serving(self, group: str) -> str:
        """The node that answers at the group's address, "" if none does. One request, at most 0.3 s."""
        connection = http.client.HTTPConnection(SERVED[group], self.stage.ports.http, timeout=0.3)
        try:
            connection.request("GET", "/")
            words = connection.getresponse().read().decode().split()
            return words[3] if words[:1] == [group] and len(words) > 3 else ""
        except (OSError, http.client.HTTPException):
            return ""
        finally:
            connection.close()

    def poll(self, name: str, agent_of: str, row: str = "") -> str:
        """A read by SNMP, told as the line that it is."""
        agent = self.stage.agent(agent_of)
        value = self.manager.get(agent, name, row)
        self.say("console", f"{self.manager.get_line(agent, name, row)}   -> {value}")
        return value

    # ---------------------------------------------------------------------------------------------------------- acts

    def start(self) -> None:
        self.act("Two nodes start")
        config = load(str(self.stage.config(NODES[0])))
        self.say(
            "arbiter", admin.init(config.arbiter.device, config.cluster, tuple(g.name for g in config.groups), NODES)
        )
        for node in NODES:
            self.start_node(node)
        for group, (home, _) in GROUPS.items():
            self.wait(f"{group} runs on {home}", lambda group=group, home=home: self.runs(group, home, home))  # type: ignore[misc]
            self.check(f"{self.stage.url(group)} is served by {home}", self.serving(group) == home)
        self.wait("both nodes hear each other on both links", self._all_heard)
        view = self.view(NODES[0])
        for link in rows_of(view, "links", LinkRow) if view else []:
            self.say("heartbeat", f"{NODES[0]} - {link.node} over {link.link} ({link.address}): "
                                  f"round trip {link.round_trip_us / 1000:.2f} ms")  # fmt: skip

    def start_node(self, node: str) -> None:
        self._dead -= {node}
        self.stage.start(node)
        self.say("demo", f"hasnmpd --config {self.stage.config(node)} --node {node}")
        if node not in self._followers:
            self._followers[node] = Follower(self.stage.control(node), self._take_event)

    def _all_heard(self) -> bool:
        views = [self.view(node) for node in NODES]
        return all(
            view is not None
            and all(row.state is NodeState.UP for row in rows_of(view, "nodes", NodeRow))
            and len(rows_of(view, "links", LinkRow)) == 2
            and all(row.state is LinkState.UP and row.round_trip_us for row in rows_of(view, "links", LinkRow))
            for view in views
        )

    def walk(self) -> None:
        self.act(f"A console polls, with {self.manager.name}")
        for node in NODES:
            self.wait(f"the agent of {node} answers", lambda node=node: self._answers(node))  # type: ignore[misc]
            self.check(f"the agent of {node} knows its name", self.poll("haNodeName", node) == node)
        self.check("the pair shares the groups", self.poll("haRole", NODES[0]) == str(int(Role.SHARED)))
        # Each agent shows the whole cluster.
        self.check("node-b's agent knows who runs web", self.poll("haGroupOwner", "node-b", "web") == "node-a")
        agent = self.stage.agent(NODES[0])
        count = self.manager.walk(agent)
        self.say("console", f"{self.manager.walk_line(agent)}   -> {count} objects")
        self.check("the walk shows the cluster", count >= 150, f"{count} objects, 150 or more are expected")
        # A while of normal life: also what the engines keep on disk then tells who owned what, for the return later.
        answers = []
        for _ in range(12):
            answers += [self.serving(group) == home for group, (home, _) in GROUPS.items()]
            time.sleep(0.1)
        self.check(f"both services answered each of {len(answers)} requests", all(answers), answers.count(False))

    def _answers(self, node: str) -> bool:
        try:
            return self.manager.get(self.stage.agent(node), "haNodeName") == node
        except ManagerError:
            return False

    def power_cut(self) -> None:
        self.act("Power cut: every process of node-a gets SIGKILL")
        mark = len(self.traps)
        self._dead |= {"node-a"}
        killed_at = time.monotonic()
        count = self.stage.kill("node-a")
        self.say("demo", f"{count} processes of node-a are gone", "bad")
        self.wait("web is served again", lambda: self.serving("web") == "node-b")
        took_ms = (time.monotonic() - killed_at) * 1000
        self.check(f"web is served by node-b, {took_ms:.0f} ms after the power cut (dead_after_ms {DEAD_AFTER_MS})",
                   took_ms < TAKEOVER_BOUND_MS, f"{took_ms:.0f} ms; at most {TAKEOVER_BOUND_MS} are expected")  # fmt: skip
        self.wait("node-b runs web", lambda: self.runs("web", "node-b", "node-b"))
        for kind in (Kind.NODE_LOST, Kind.TAKEOVER_COMPLETED):
            self.wait(f"the trap {kind.value}", lambda kind=kind: self.trapped(kind, "node-b", mark))  # type: ignore[misc]
        self.check("the traps nodeLost and takeoverCompleted came from node-b's agent", True)
        self.wait("the agent says so", lambda: self.manager.get(self.stage.agent("node-b"), "haRole") == "1")
        self.check("node-b is the primary now", self.poll("haRole", "node-b") == str(int(Role.PRIMARY)))
        self.check("files went on on node-b", self.serving("files") == "node-b")

    def come_back(self) -> None:
        self.act("node-a returns")
        self.start_node("node-a")
        self.wait("node-a is there", lambda: self._role("node-a") is Role.RECOVERING)
        self.wait("its agent answers", lambda: self._answers("node-a"))
        role = self.poll("haRole", "node-a")
        self.check(
            "node-a is recovering: a failed node waits for the administrator", role == str(int(Role.RECOVERING)), role
        )
        self.check("web stays where it is", self.serving("web") == "node-b")

    def _role(self, node: str) -> Role:
        view = self.view(node)
        system = first(view, "system", SystemRow) if view else None
        return system.role if system else Role.UNKNOWN

    def recover(self) -> None:
        self.act("The administrator takes it back")
        words = ["--socket", self.stage.control("node-a"), "recover", "node-a", "--reason", "power is back"]
        self.say("admin", shlex.join(["hasnmp", *words]))
        ran = subprocess.run(
            [sys.executable, "-m", "hasnmp.cli", *words], capture_output=True, text=True, timeout=PATIENCE_S
        )
        self.check(
            "the command line says: done", ran.returncode == 0, f"exit status {ran.returncode}: {ran.stderr.strip()}"
        )
        self.wait("node-a is a standby", lambda: self._role("node-a") is Role.STANDBY)
        self.check("node-a is a standby: able to run everything, running nothing", self.serving("web") == "node-b")
        # node-b learns from the next heartbeats that node-a is able; before that it would refuse to move a group there.
        heard = max(0, self._heard_by_b())
        self.wait("node-b knows that node-a is able", lambda: self._heard_by_b() >= heard + 3)

    def _heard_by_b(self) -> int:
        view = self.view("node-b")
        row = view.tables["nodes"].get("node-a") if view else None
        return row.heartbeats_received if isinstance(row, NodeRow) and row.role is Role.STANDBY else -(10**9)

    def planned(self) -> None:
        self.act("A console moves web back by SNMP")
        agent = self.stage.agent("node-b")
        mark = len(self.traps)
        self.say("console", self.manager.set_line(agent, "haGroupAction", 2, "web"))
        self.manager.set(agent, "haGroupAction", 2, "web")
        last_b = time.monotonic()
        while (now := self.serving("web")) != "node-a":
            if now == "node-b":
                last_b = time.monotonic()
            if time.monotonic() - last_b > PATIENCE_S:
                raise Differed(f"web was not served by node-a within {PATIENCE_S:.0f} s of the SET")
            time.sleep(0.002)
        out_ms = (time.monotonic() - last_b) * 1000
        self.check(f"web is served by node-a, after {out_ms:.0f} ms without an answer", out_ms < PLANNED_BOUND_MS,
                   f"{out_ms:.0f} ms; at most {PLANNED_BOUND_MS} are expected")  # fmt: skip
        self.wait("both nodes say so", lambda: all(self.runs("web", "node-a", node) for node in NODES))
        self.wait("the trap takeoverCompleted", lambda: self.trapped(Kind.TAKEOVER_COMPLETED, "node-a", mark))
        self.check("the trap takeoverCompleted came from node-a's agent", True)
        self.wait("node-b's agent says so", lambda: self.manager.get(agent, "haGroupOwner", "web") == "node-a")
        self.check("node-b's agent says who runs web", self.poll("haGroupOwner", "node-b", "web") == "node-a")

    def end(self) -> None:
        self.act("Both nodes stop in order")
        self._dead = frozenset(NODES)
        ended = self.stage.stop()
        left = [pid for node in NODES for pid in self.stage.pids(node)]
        self.check("both daemons ended with 0 and left no process behind", set(ended.values()) == {0} and not left,
                   f"exit statuses {ended}, processes left: {left}")  # fmt: skip

    def try_it(self) -> None:
        """The lines for another terminal."""
        m, a, b = self.manager, self.stage.agent("node-a"), self.stage.agent("node-b")
        lines = [m.setup, m.get_line(a, "haRole"), m.get_line(b, "haGroupOwner", "web"), m.walk_line(a),
                 m.set_line(a, "haGroupAction", 2, "web"), f"curl {self.stage.url('web')}",
                 f"{_hasnmp()} --socket {self.stage.control('node-a')} status",
                 f"{_hasnmp()} --socket {self.stage.control('node-b')} watch"]  # fmt: skip
        self.act("Try it from another terminal; Ctrl-C here ends the demo")
        with self._lock:
            print("\n".join(f"  {line}" for line in lines if line), flush=True)


def _hasnmp() -> str:
    """The command as another terminal finds it: after `make run` it is not on PATH."""
    beside = Path(sys.executable).with_name("hasnmp")
    return "hasnmp" if shutil.which("hasnmp") or not beside.exists() else str(beside)


def _deaf() -> None:
    """An end takes seconds and leaves nothing behind: nobody who is impatient cuts it short."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _interrupt(*_: object) -> NoReturn:
    _deaf()
    raise KeyboardInterrupt


def play(once: bool) -> int:
    """Returns 0, or 1 with what differed; 130 if it was interrupted before its end."""
    signal.signal(signal.SIGTERM, _interrupt)  # so that nothing is left behind then either
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as in a shell's job in the background
        signal.signal(signal.SIGINT, _interrupt)
    began = time.monotonic()
    screen = Screen()
    try:
        with Stage() as stage:
            story = Story(stage, screen)
            try:
                print(f"hasnmp demo, in {stage.folder}", flush=True)
                for part in (story.start, story.walk, story.power_cut, story.come_back, story.recover, story.planned):
                    part()
                    if not once:
                        time.sleep(READING_S)
                if once:
                    story.end()
                    print(f"\nall {story.checks} checks are good, {time.monotonic() - began:.1f} s", flush=True)
                    return 0
                story.try_it()
                story._dead = frozenset(NODES)
                while True:
                    time.sleep(1)
            except (Differed, ManagerError) as error:
                story.say("differs", str(error), "bad")
                _show_logs(stage)
                return 1
            except KeyboardInterrupt:
                print("\nending", flush=True)
                story._dead = frozenset(NODES)
                return 130 if once else 0
            finally:
                _deaf()
                stage.stop()
                story.close()
    except Refused as error:
        print(f"hasnmp: {error}", file=sys.stderr)
        return int(error.code)


def _show_logs(stage: Stage) -> None:
    for node in NODES:
        if stage.log(node).exists():
            tail = stage.log(node).read_text(errors="replace").splitlines()[-15:]
            print(f"\nthe end of {node}'s log:", *(f"  {clean(line)}" for line in tail), sep="\n", file=sys.stderr)
