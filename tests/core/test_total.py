"""Totality: every phase of a lease x every kind of event, late, early, twice or of an attempt that nobody began, never
raises and breaks no invariant. Then the same by chance, at length.

The invariants are judged from the effects and from the clock, not from what the engine thinks of itself:
no START without a lease that the guardian acknowledged and that has not ended; no promise by a node that takes or holds the
group; no two calls under way for one slot; a slot's sequence only rises, as tokens do.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hasnmp.core.context import MS
from hasnmp.core.events import (
    Act,
    Action,
    AgentResult,
    ArbiterAnswer,
    ArbiterCall,
    CommandIn,
    Event,
    Extend,
    Extended,
    HeldLease,
    HookEnded,
    Outcome,
    Persisted,
    Received,
    Rejected,
    Release,
    Released,
    ReloadEnded,
    Retire,
    Send,
    Sent,
    ServiceExited,
    Staged,
    Tick,
    Troubled,
)
from hasnmp.core.lease import Phase
from hasnmp.errors import Code
from hasnmp.model import Verb
from hasnmp.wire import Datagram, DatagramKind, GroupEntry, GroupFlag, NodeFlag, Slot, SlotState
from tests.core.driver import BOOT, DIGEST, Driver, finished, holder_of

KILL = 100 * MS

# Scripts that lead into each phase. What answers by itself is made silent at their end.
PHASES = {
    "starting": (Phase.NONE, "start"),
    "none": (Phase.NONE, "start\npeer b nfs=owner,ask:5\nat 900ms"),
    "promised": (Phase.NONE, "start\npeer b nfs=owner,ask:5\nat 1500ms"),
    "taking": (Phase.TAKING, "start\npeer b nfs=able promises=no\nat 1100ms"),
    "claiming": (Phase.TAKING, "start\nat 1490ms\nmanual arbiter\nat 1510ms\narbiter nfs"),
    "granted": (Phase.HELD, "manual guardian\nstart\npeer b nfs=able\nat 1020ms"),
    "held": (Phase.HELD, "start\npeer b nfs=able\nat 1500ms"),
    "held by the record": (Phase.HELD, "start\nat 4000ms"),
    "starting services": (Phase.HELD, "manual agents\nstart\npeer b nfs=able\nat 1020ms"),
    "stopping": (Phase.HELD, "manual agents\nstart\npeer b nfs=able\nat 1010ms\nresult web start ok\ncommand failover nfs to=b"),
    "blocked": (Phase.HELD, "manual agents\nstart\npeer b nfs=able\nat 1010ms\nresult web start ok\ncommand failover nfs to=b\nresult web stop failed"),
    "releasing": (Phase.RELEASING, "start\npeer b nfs=able\nat 1010ms\nmanual guardian\ncommand failover nfs to=b"),
    "released": (Phase.NONE, "start\npeer b nfs=able\nat 1010ms\ncommand failover nfs to=b"),
    "lost": (Phase.LOST, "start\npeer b nfs=able\nat 1500ms\npeer b silent\nmanual guardian arbiter\nat 2450ms"),
    "leaving": (Phase.NONE, "start\npeer b nfs=owner,ask:5\nat 1500ms\nmanual store\nshutdown"),
    "left": (Phase.NONE, "start\npeer b nfs=owner,ask:5\nat 1500ms\nshutdown\nat 4000ms"),
}  # fmt: skip
ALL = "manual arbiter guardian agents store receipts"


class Judge(Driver):
    """The driver, with the invariants judged at each effect. Nothing answers by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.acked: dict[str, tuple[int, int]] = {}  # group -> token, until: what the guardian acknowledged
        self.tokens: dict[str, int] = {}
        self.sequence = 0
        self.out: set[str] = set()  # groups with a call under way

    def taken(self, event: Event) -> None:
        if isinstance(event, ArbiterAnswer) and self.engine is not None:
            call = self.engine.state.leases[event.group].call if event.group in self.engine.state.leases else None
            if call is not None and call.attempt == event.attempt:
                self.out.discard(event.group)
        if isinstance(event, Extended) and event.ok:
            for held in event.leases:
                token, until = self.acked.get(held.group, (0, 0))
                self.acked[held.group] = (held.token, max(held.until_ns, until if token == held.token else 0))
        if isinstance(event, Released) and event.ok and self.acked.get(event.group, (0, 0))[0] == event.token:
            self.acked.pop(event.group, None)

    def effect(self, effect: Any) -> None:
        assert self.engine is not None
        match effect:
            case Act(action=Action.START):
                _, until = self.acked.get("nfs", (0, 0))
                assert self.now < until - KILL, f"{effect.service} is started without a lease"
            case Send(datagram=d) if any(e.flags & GroupFlag.PROMISE and e.group == "nfs" for e in d.groups):
                assert self.engine.state.leases["nfs"].phase is Phase.NONE, "a promise by one that takes or holds"
            case ArbiterCall():
                assert effect.group not in self.out, "two calls under way"
                self.out.add(effect.group)
                if effect.slot is not None:
                    assert effect.slot.seq > self.sequence
                    self.sequence = effect.slot.seq
            case Extend():
                for held in effect.leases:
                    assert held.token >= self.tokens.get(held.group, 0), "a token fell"
                    self.tokens[held.group] = held.token
                    assert held.until_ns > self.now - 1000 * MS
            case Release():
                facts = self.engine.state.board.services["web"]
                assert facts.state.name == "STOPPED", "released before it was stopped"
        super().effect(effect)

    def do_start(self, words: list[str], options: dict[str, str]) -> None:
        self.acked, self.out = {}, set()
        super().do_start(words, options)


def in_phase(name: str) -> Judge:
    phase, script = PHASES[name]
    judge = Judge()
    judge.run(f"cluster a b\n{script}\npeer b silent\n{ALL}")
    assert judge.engine is not None and judge.engine.state.leases["nfs"].phase is phase, name
    judge.reads.clear()
    return judge


def datagrams(judge: Judge) -> list[Event]:
    """What b may say now: fresh and not, of each kind, with each flag, of tokens below, at and above ours."""
    assert judge.engine is not None
    peer, lease = judge.others["b"], judge.engine.state.leases["nfs"]
    newest = peer.sent_to[-1][1] if peer.sent_to else 0
    events: list[Event] = []
    for flags in (
        GroupFlag.ASK, GroupFlag.ASK | GroupFlag.OWNER, GroupFlag.PROMISE, GroupFlag.PROMISE | GroupFlag.FOREVER,
        GroupFlag.RELEASED, GroupFlag.RELEASED | GroupFlag.HANDOVER, GroupFlag(127),
    ):  # fmt: skip
        for token in (0, lease.token, lease.token + 1, 1 << 40):
            for kind in DatagramKind:
                for echo in (0, newest):
                    peer.seq += 1
                    entries = (GroupEntry("nfs", flags, token, 1000), GroupEntry("other", flags, token, 1000))
                    d = Datagram(
                        kind, "b", "a", peer.incarnation, peer.seq, judge.engine.state.incarnation, echo, peer.holder,
                        DIGEST, NodeFlag(0), entries,
                    )  # fmt: skip
                    events.append(Received("lan", d))
    d = replace(events[-1].datagram, seq=peer.seq + 1)  # type: ignore[union-attr]
    peer.position = max(peer.position, 2)  # of its stream: what two of these events say that it has sent
    events += [
        Received("wifi", d), Received("lan", replace(d, sender="z")), Received("lan", replace(d, receiver="b")),
        Received("lan", replace(d, seq=d.seq + 1, flags=NodeFlag(31), digest="e" * 16)),
        Received("lan", replace(d, seq=d.seq + 2, payload=b"\xff{", stream=1)),
        Received("lan", replace(d, seq=d.seq + 3, payload=b'[["g/nfs",5],["r/x",[1e999,2,3]],["c/1/nfs",[]],["zz",0]]', stream=2)),
        Received("lan", replace(d, seq=d.seq + 4, incarnation=77)),
    ]  # fmt: skip
    return events


def others(judge: Judge) -> list[Event]:
    """Every other event, of what was begun and of what never was."""
    assert judge.engine is not None
    lease = judge.engine.state.leases["nfs"]
    slot = Slot("nfs", "b", 9, SlotState.HELD, holder_of("b"), lease.token + 1, 3000)
    events: list[Event] = [
        Tick(judge.wall()),
        Sent(1, judge.now),
        Sent(1 << 60, judge.now + MS),
        Rejected("lan", "signature", 3),
    ]
    for token in (0, lease.token, lease.token + 1):
        for until in (judge.now - MS, judge.now + 900 * MS):
            events.append(Extended((HeldLease("nfs", token, until), HeldLease("other", token, until)), False))
        events += [
            Released("nfs", token + 1, True),
            Released("nfs", token, False, "left"),
            Released("other", token, True),
        ]
    attempts = [-1, 1 << 61]
    attempts += [c.attempt for c in judge.calls.values()] + [a.attempt for a in judge.acts.values()]
    for attempt in attempts:
        for slots in (
            {},
            {"a": slot, "b": slot},
            {"a": "bad", "b": "bad"},
            {"b": replace(slot, state=SlotState.CLAIM)},
        ):
            events.append(ArbiterAnswer(attempt, "nfs", judge.now, slots, "", "u1"))  # type: ignore[arg-type]
        events += [
            ArbiterAnswer(attempt, "nfs", judge.now, {}, "timeout"),
            ArbiterAnswer(attempt, "other", judge.now, {}),
        ]
        for outcome in Outcome:
            events += [AgentResult(attempt, "web", outcome, "m", 5, 9), AgentResult(attempt, "other", outcome)]
    events += [ServiceExited("web", 5, "m"), ServiceExited("web", 101, "m"), ServiceExited("other", 5, "m")]
    events += [Persisted(v, ok) for v in (0, 1, 1 << 30) for ok in (True, False)]
    events += [ReloadEnded(c, int(code), "m") for c in (0, 1) for code in (Code.DONE, Code.CONFIG_INVALID, Code.FAILED)]
    events += [
        HookEnded(attempt, group, on, failures, bool(failures))
        for attempt in (0, 1, 10**6)
        for group in ("nfs", "")
        for on in ("before_start", "before_stop", "after_stop", "node_lost")
        for failures in ((), ("m",))
    ]
    events += [Troubled(name, text) for name in ("snmp", "") for text in ("", "m")]
    events += [Staged(ident, int(code), "m") for ident in ("", "0" * 16) for code in (Code.DONE, Code.CONFIG_INVALID)]
    events.append(CommandIn(1, Verb.APPLY, "", "me", document="file"))
    events += [ReloadEnded(1, -1, "a code that this version does not know")]
    for services, groups in ((), ()), (("web",), ()), ((), ("nfs",)), (("other",), ("other",)):
        for keys in ((), ("00000000",)):
            events.append(Retire(1, services, groups, keys, 100, "m"))
    for verb in Verb:
        for target in ("", "nfs", "web", "a", "b", "zoe"):
            events.append(CommandIn(1, verb, target, "me", to="b"))
            events.append(CommandIn(0, verb, target, "me", to="a", up=False))
    return events


@pytest.mark.parametrize("phase", PHASES)
def test_every_event_in_every_phase(phase: str) -> None:
    """Each event alone, from the phase; then a tick after it, and one much later."""
    count = len(datagrams(in_phase(phase))) + len(others(in_phase(phase)))
    for first in range(0, count, 30):  # thirty from one and the same start: they are not to break each other either
        judge = in_phase(phase)
        for event in (datagrams(judge) + others(judge))[first : first + 30]:
            judge.step(event)
            judge.step(Tick(judge.wall()))
        judge.command("+700ms")
        judge.command("+3000ms")


def frozen(judge: Judge) -> tuple[object, ...]:
    """All of a lease's state, and of its services'."""
    assert judge.engine is not None
    lease = judge.engine.state.leases["nfs"]
    kept = {n: getattr(lease, n) for n in type(lease).__slots__ if n != "group"}
    running = judge.engine.state.running["nfs"]
    return (
        repr(kept),
        running.stage,
        running.blocked,
        repr([(r.action, r.attempt, r.facts.state) for r in running.runs]),
    )


@pytest.mark.parametrize("phase", [p for p in PHASES if p != "left"])
def test_an_answer_of_an_unknown_attempt_changes_nothing(phase: str) -> None:
    judge = in_phase(phase)
    judge.step(Tick(judge.wall()))
    assert judge.engine is not None
    lease = judge.engine.state.leases["nfs"]
    before, number = frozen(judge), lease.token + 7
    slot = Slot("nfs", "b", 99, SlotState.HELD, holder_of("b"), 99, 3000)
    for event in (
        Sent(1 << 60, judge.now), Extended((HeldLease("nfs", number, judge.now + 900 * MS),)),
        Extended((HeldLease("nfs", number, judge.now + 900 * MS),), False), Released("nfs", number, True),
        Released("nfs", number, False, "left"), ArbiterAnswer(1 << 61, "nfs", judge.now, {"a": slot, "b": slot}, "", "u9"),
        ArbiterAnswer(1 << 61, "nfs", judge.now, {}, "timeout"), AgentResult(1 << 61, "web", Outcome.FAILED, "m"),
        AgentResult(1 << 61, "web", Outcome.OK, "m", 0, 7), ServiceExited("web", 1 << 20, "m") if phase != "stopping" else Tick(0),
    ):  # fmt: skip
        judge.step(event)
        assert frozen(judge) == before, event


# ------------------------------------------------------------------------------------------------------- by chance

LINES = st.sampled_from(
    [
        "+1ms", "+50ms", "+200ms", "+900ms", "+2500ms", "nap 300ms", "nap 2500ms", "sleep 95ms", "sleep 1200ms",
        "peer b back", "peer b silent", "peer b promises=no", "peer b promises=yes", "peer b nfs=able",
        "peer b nfs=-:0", "peer b nfs=owner,ask:400 ", "peer b nfs=released,handover:400", "peer b restart nfs=able",
        "peer b flags=leaving", "peer b flags=-", "peer b digest=e", "peer b digest=d", "replay b",
        "hear b heartbeat nfs=ask:300", "hear b heartbeat nfs=owner,ask:300 seq=-1", "hear b heartbeat nfs=ask:500 holder=f",
        "disk nfs b=held:50:50:3000ms", "disk nfs b=claim:999:60:3000ms", "disk nfs b=idle:10:70:3000ms", "disk nfs b=bad",
        "manual arbiter", "auto arbiter", "arbiter nfs", "arbiter nfs error=timeout", "arbiter nfs unwritten",
        "arbiter nfs uuid=u2", "manual guardian", "auto guardian", "extended ok", "extended ok", "extended refused",
        "released nfs ok", "released nfs left", "manual agents", "auto agents", "result web start ok",
        "result web start failed", "result web stop ok", "result web stop failed", "result web check failed", "exited web",
        "manual receipts", "auto receipts", "sent", "sent -100ms", "manual store", "auto store", "persisted ok",
        "persisted failed", "command failover nfs to=b", "command failover nfs to=a", "command force-failover nfs to=a",
        "command standby a", "command online a", "command recover a", "command inhibit", "command permit",
        "command freeze nfs", "command thaw nfs", "command service-restart web", "command service-stop web",
        "command service-start web", "command service-clear web", "why nfs", "lease nfs",
    ]
)  # fmt: skip


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(sorted(set(PHASES) - {"left", "leaving"})), st.lists(LINES, max_size=40), st.booleans())
def test_whatever_happens(phase: str, lines: list[str], leave: bool) -> None:
    judge = in_phase(phase)
    for line in [*lines, *(["shutdown", "+9000ms"] if leave else [])]:
        judge.run(line)
        assert not any("busy loop" in text for text in judge.lines)
    assert judge.engine is not None
    if not finished(judge):
        judge.engine.view(judge.now, judge.wall())
        assert judge.engine.next_deadline_ns() >= BOOT
