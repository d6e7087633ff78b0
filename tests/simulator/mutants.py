"""Mutants of the core: each breaks one rule of the design, and the simulator has to notice.

A mutant is a change of source text. It is compiled in place of the real module, in a fresh copy of the core and of the
simulator that drives it; the modules that everybody else has imported stay as they are.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

ROOT = Path(__file__).resolve().parents[2]
FRESH = ("hasnmp.core", "hasnmp.simulator", "hasnmp.config_changes")


@dataclass(frozen=True)
class Edit:
    """In that file (below hasnmp/), the text `old`, which occurs exactly once, becomes `new`."""

    file: str
    old: str
    new: str

    def apply(self, source: str) -> str:
        found = source.count(self.old)
        assert found == 1, (
            f"hasnmp/{self.file}: {self.old!r} occurs {found} times, not once: bring the mutant up to date"
        )
        return source.replace(self.old, self.new)


@dataclass(frozen=True)
class Mutant:
    """rule: of design.md, the one that it breaks. profiles: whose runs look for it, in turn."""

    name: str
    rule: int
    edits: tuple[Edit, ...]
    profiles: tuple[str, ...]


class _Loader(SourceFileLoader):
    """Compiles the edited text; never the cached byte code of the real one."""

    def __init__(self, name: str, path: str, edits: Sequence[Edit]) -> None:
        super().__init__(name, path)
        self.edits = edits

    def get_code(self, fullname: str) -> CodeType:
        source = Path(self.path).read_text(encoding="utf-8")
        for edit in self.edits:
            source = edit.apply(source)
        return compile(source, self.path, "exec", dont_inherit=True)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, edits: Sequence[Edit]) -> None:
        self.files: dict[str, list[Edit]] = {}
        for edit in edits:
            module = "hasnmp." + edit.file.removesuffix(".py").replace("/", ".")
            self.files.setdefault(module, []).append(edit)

    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in self.files:
            return None
        file = str(ROOT / (name.replace(".", "/") + ".py"))
        return importlib.util.spec_from_file_location(name, file, loader=_Loader(name, file, self.files[name]))


@contextmanager
def mutated(edits: Sequence[Edit]) -> Iterator[ModuleType]:
    """hasnmp.simulator.runs as it would be with these edits."""
    kept = {name: module for name, module in sys.modules.items() if name.startswith(FRESH)}
    for name in kept:
        del sys.modules[name]
    finder = _Finder(edits)
    sys.meta_path.insert(0, finder)
    try:
        yield importlib.import_module("hasnmp.simulator.runs")
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.startswith(FRESH)]:
            del sys.modules[name]
        sys.modules.update(kept)
        for name in ("core", "simulator"):
            package = kept.get(f"hasnmp.{name}")
            if package is not None:
                setattr(sys.modules["hasnmp"], name, package)


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "takeover on silence, without waiting for the promise to end", 1,
        (
            Edit("core/placement.py", "    if lease.promise_stands(ctx.now):\n        if lease.forever_ms:", "    if False:\n        if lease.forever_ms:"),
            Edit("core/lease.py", "and not self.promise_stands(ctx.now) and token >=", "and token >="),
            Edit("core/peers.py", "lost_at = peer.heard_ns + hb.dead_after_ms * MS", "lost_at = late_at"),
        ),
        ("restart", "chaos"),
    ),
    Mutant(
        "a promise to two: a node that takes the group itself still promises it to another", 1,
        (
            Edit("core/lease.py", "        if self.phase is not Phase.NONE:\n            return None\n        stands", "        if self.phase not in (Phase.NONE, Phase.TAKING):\n            return None\n        stands"),
            Edit("core/lease.py", "            self.abandon(ctx, f\"{asker.sender} has it or asks for it, and comes first\")", "            pass"),
        ),
        ("arbiter", "promises"),
    ),
    Mutant(
        "the durable promise of a node that left is forgotten", 1,
        (Edit("core/durable.py", "            self._restore_leave(lease, mapping(document.get(\"forever\")).get(name))\n", ""),),
        ("restart",),
    ),
    Mutant(
        "that a node has lost its state file is forgotten with that very life", 1,
        (Edit("core/durable.py", "sorted(state.forgot) if state.unheard() else []", "[]"),),
        ("state lost twice",),
    ),
    Mutant(
        "promises are counted from the answer, not from the ask", 2,
        (Edit("core/talk.py", "asked_of.promised(peer.name, entry, heard.asked_ns)", "asked_of.promised(peer.name, entry, ctx.now)"),),
        ("late",),
    ),
    Mutant(
        "the arbiter's lease is counted from the answer, not from the ask", 2,
        (Edit("core/lease.py", "end = self.called_at + call.slot", "end = answer.read_at_ns + call.slot"),),
        ("late record",),
    ),
    Mutant(
        "a promise is given and not counted", 2,
        (Edit("core/lease.py", "            self.promised_until = max(self.promised_until, at_ns + duration)", "            pass"),),
        ("drift", "late"),
    ),
    Mutant(
        "an engine is told that the one before promised nobody what it had given up, and does not listen first", 2,
        (
            Edit("core/engine.py", "        end = state.started_ns + self.config.heartbeat.startup_wait_ms * MS\n", "        end = state.started_ns\n"),
            Edit("core/guard.py", "sorted(self.unbound - self.ending)", "sorted(self.last_token)"),
        ),
        ("giver",),
    ),
    Mutant(
        "a starting engine has forgotten what it promised, and does not listen first", 2,
        (
            Edit("core/engine.py", "        end = state.started_ns + self.config.heartbeat.startup_wait_ms * MS\n", "        end = state.started_ns\n"),
            Edit("core/durable.py", "lease.promised_until = ctx.now + longest * MS * TAKER_PART // 100", "lease.promised_until = 0"),
        ),
        ("restart",),
    ),
    Mutant(
        "a taker waits for its own configuration's time, not for the record's", 2,
        (
            Edit("core/lease.py", "self._see(node, answer.slots.get(node, \"missing\"), answer.read_at_ns)", "self._see(node, answer.slots.get(node, \"missing\"), answer.read_at_ns - _more(answer.slots.get(node), ctx))"),
            Edit("core/lease.py", "class Phase(Enum):", "def _more(slot, ctx):\n    return (slot.duration_ms - ctx.config.arbiter.lease_ms) * MS if isinstance(slot, Slot) else 0\n\n\nclass Phase(Enum):"),
        ),
        ("mixed alone",),
    ),
    Mutant(
        "no margin for clocks that drift", 2,
        (Edit("core/lease.py", "OWNER_PART = 99 ", "OWNER_PART = 100 "), Edit("core/lease.py", "TAKER_PART = 101 ", "TAKER_PART = 100 ")),
        ("drift",),
    ),
    Mutant(
        "no read after the write of a claim", 3,
        (Edit("core/lease.py", "        for node in self.others:\n            self._see(", "        for node in self.others if call.slot is None else ():\n            self._see("),),
        ("claimants",),
    ),
    Mutant(
        "an owner heeds a stale claim", 3,
        (Edit("core/lease.py", "if seen.standing(self.read_at) and seen.slot.token > self.token:", "if seen.standing(self.read_at):"),),
        ("kept ghost",),
    ),
    Mutant(
        "a slot that can't be read counts as free", 3,
        (Edit("core/lease.py", "            self.unreadable[node] = slot\n            return", "            self.seen[node] = Seen(Slot(self.group.name, node, 0, SlotState.IDLE, \"\", 0, 0), read_at_ns)\n            return"),),
        ("unreadable",),
    ),
    Mutant(
        "a second write while the first is under way", 3,
        (Edit("simulator/storage.py", "        if call.group in self.stuck:", "        if False:"),),
        ("ghost",),
    ),
    Mutant(
        "tokens are not durable and not raised above those seen", 3,
        (
            Edit("core/durable.py", "            lease.token_floor = ceiling\n", ""),
            Edit("core/lease.py", "        self.token_floor = max(self.token_floor, token)\n\n    def hear_floor", "\n    def hear_floor"),
            Edit("core/lease.py", "        if not (self.phase is Phase.TAKING and token == self.token):\n            self.token_floor = max(self.token_floor, token)", "        return"),
        ),
        ("chaos", "arbiter"),
    ),
    Mutant(
        "the guardian's acknowledgement is not awaited", 4,
        (Edit("core/lease.py", "        self.told = until\n        return HeldLease", "        self.told = self.acked = until\n        return HeldLease"),),
        ("taken",),
    ),
    Mutant(
        "a frozen engine is not killed first, and the guardian obeys before it ends what is due", 4,
        (
            Edit("simulator/guardian.py", "                self.machine.kill_engine()", "                pass"),
            Edit("simulator/guardian.py", "    def woke(self) -> None:\n        self.end_due()", "    def woke(self) -> None:\n        pass"),
            Edit("simulator/guardian.py", "        self.end_due()\n        if isinstance(effect, Extend):", "        if isinstance(effect, Extend):"),
            Edit("core/guard.py", " and now_ns < held.until_ns - self.kill_ns", ""),
        ),
        ("frozen start",),
    ),
    Mutant(
        "a lease that lapsed is renewed, over the claim of another", 4,
        (
            Edit("core/guard.py", "elif lease.token < held.token or held.until_ns - self.kill_ns <= now_ns:", "elif lease.token < held.token:"),
            Edit("core/lease.py", "            and ctx.now < self.acked - ctx.config.heartbeat.kill_ms * MS\n", ""),
            Edit("core/lease.py", "if seen.standing(self.read_at) and seen.slot.token > self.token:", "if False:"),
            Edit("simulator/guardian.py", "    def woke(self) -> None:\n        self.end_due()", "    def woke(self) -> None:\n        pass"),
            Edit("simulator/guardian.py", "            self.timer_at = NEVER\n            self.end_due()", "            self.timer_at = NEVER"),
            Edit("simulator/guardian.py", "        self.end_due()\n        if isinstance(effect, Extend):", "        if isinstance(effect, Extend):"),
        ),
        ("lapse",),
    ),
    Mutant(
        "the group is given up before the guardian confirms it", 4,
        (Edit("core/moving.py", "            lease.release(ctx)\n", "            lease.release(ctx)\n            released(state, name)\n"),),
        ("handover",),
    ),
    Mutant(
        "an old word counts as life and as a promise", 8,
        (Edit("core/peers.py", "    asked = peer.asked.get(datagram.echo_seq) if datagram.echo_incarnation == incarnation else None\n", "    asked = Asked(ctx.now, False)\n"),),
        ("replay",),
    ),
    Mutant(
        "a node that left for ever is counted on after it has come back", 1,
        (Edit("core/talk.py", "lease.left.pop(peer.name, None)", "None"),),
        ("restart",),
    ),
    Mutant(
        "a group with a disk is started on its lease alone", 6,
        (Edit("core/placement.py", "waits = fencing.holds_back(state, group) if name not in state.adopted else \"\"", "waits = \"\""),),
        ("disks",),
    ),
    Mutant(
        "a node that is not heard counts as clean", 6,
        (Edit("core/fencing.py", "        newer = settled and entry is not None", "        newer = not peer.heard() or settled and entry is not None"),),
        ("disks",),
    ),
    Mutant(
        "that a node has a group by promises stands on no disk", 6,
        (Edit("core/arbitration.py", "            lease.write(ctx, SlotState.RESTING)\n", "            lease.write(ctx, SlotState.IDLE)\n"),),
        ("disks",),
    ),
    Mutant(
        "a watchdog counts that nobody has armed", 6,
        (Edit("core/fencing.py", "armed = _armed(state, node, suspect.holder)\n        if armed and", "armed = 1000\n        if armed and"),),
        ("dogs",),
    ),
    Mutant(
        "a watchdog's time is counted from nothing", 6,
        (Edit("core/fencing.py", "since + armed * MS * TAKER_PART // 100):\n", "since):\n"),),
        ("dogs",),
    ),
    Mutant(
        "a fence that failed, or was not answered in time, has happened", 7,
        (
            Edit("core/fence_acts.py", "        _failed(state, event.node, attempt, event.text)\n    elif attempt.action", "        _succeeded(state, event.node, attempt, event.text)\n    elif attempt.action"),
            Edit("core/fence_acts.py", "            _failed(state, node, attempt, \"no answer within its time limit\")", "            _succeeded(state, node, attempt, \"\")"),
        ),
        ("fence fails",),
    ),
    Mutant(
        "a node takes a silent one's group unfenced, where the fence is the arbiter", 7,
        (
            Edit("core/placement.py", "    if missing := fencing.unfenced(state, group, lease):\n        state.decided", "    if missing := []:\n        state.decided"),
            Edit("core/placement.py", "    if fencing.unfenced(state, group, lease):\n", "    if []:\n"),
            Edit("core/arbitration.py", "or n in lease.left or fencing.is_ended(state, n, lease.group)\n", "or n in lease.left or not state.peers[n].heard()\n"),
        ),
        ("fence",),
    ),
    Mutant(
        "the standby fires as early as the owner", 7,
        (Edit("core/fencing.py", "    slot = int(behind) +", "    slot = 0 * int(behind) +"),),
        ("kept fence",),
    ),
    Mutant(
        "who is fenced has no turn any more, and the others move up", 7,
        (Edit("core/fencing.py", "    rounds = _rounds(state)\n", "    rounds = 1 + len(silent)\n"),),
        ("long duel",),
    ),
    Mutant(
        "a node that can't reach the lease disk goes on asking for a group", 11,
        (Edit("core/state.py", "        failing = arbiter.failing.get(group, 0) >= ALARM_AFTER and", "        failing = False and"),),
        ("taken pathless",),
    ),
    Mutant(
        "after a power cut a node fences whoever it has not heard yet", 7,
        (Edit("core/fencing.py", "    if all(p.heard_ns for p in state.peers.values()):\n        return True\n", "    if True:\n        return True\n"),),
        ("long fence", "shoot"),
    ),
    Mutant(
        "what was promised under a configuration with longer times is forgotten with it", 9,
        (Edit("core/durable.py", "longest = max(hb.dead_after_ms, number_of(document.get(\"dead_after_ms\")))", "longest = hb.dead_after_ms"),),
        ("shrink",),
    ),
    Mutant(
        "a file is gone by before every node has judged it", 9,
        (Edit("core/apply.py", "        if not mine.waiting:\n", "        if True:\n"),),
        ("kept refused",),
    ),
    Mutant(
        "another file forgets the former nodes of a group", 9,
        (Edit("config_changes.py", "        former = webs.get(group.name, ()) if file.arbiter.type == \"disk\" else ()\n", "        former: tuple[tuple[str, ...], ...] = ()\n"),),
        ("members by hand", "members cut"),
    ),
    Mutant(
        "a group that is removed is forgotten with its nodes", 9,
        (Edit("config_changes.py", "    known, groups, open_ = dict(webs), [], {}\n", "    known, groups, open_ = {g.name: webs.get(g.name, ()) for g in file.groups}, [], {}\n"),),
        ("members anew",),
    ),
    Mutant(
        "who is to have a group takes it before all know", 9,
        (Edit("config_changes.py", "        nodes = tuple(n for n in group.nodes if all(n in web for web in all_))\n", "        nodes = group.nodes\n"),),
        ("members unknown",),
    ),
    Mutant(
        "the former nodes of a group are forgotten before all have the file", 9,
        (Edit("core/apply.py", "        waits = self._not_yet()\n", "        waits = \"\"\n"),),
        ("members cut", "members by hand"),
    ),
    Mutant(
        "the former nodes of a group are forgotten while one of them has it", 9,
        (Edit("core/apply.py", "                    return f\"{node} has {name} still\"\n", "                    continue\n"),),
        ("members held",),
    ),
    Mutant(
        "a node without its state relies on nodes that have another file", 9,
        (Edit("core/state.py", "if not p.same and p.name not in self.fencing.ended]", "if not p.heard_ns and p.name not in self.fencing.ended]"),),
        ("members forgotten",),
    ),
    Mutant(
        "another lease disk counts before every node reads it", 9,
        (Edit("core/arbitration.py", "        if not rests or not all(uuid in (d.get(\"uuid\"), d.get(\"reads\")) for d in docs):\n", "        if not rests:\n"),),
        ("moved disk", "exchanged"),
    ),
    Mutant(
        "a new configuration stops what it leaves as it was", 9,
        (Edit("core/reload.py", "if name in state.retiring or r.settings.name in event.services]", "if True]"),),
        ("kept changes",),
    ),
    Mutant(
        "an older word of a slot, landed late, is taken for its node's", 3,
        (
            Edit("core/arbitration.py", "    older = _older(state, lease, answer)\n", "    older: dict[str, str] = {}\n"),
            Edit("core/lease.py", "        if before is not None and slot.seq < before.slot.seq:\n", "        if False:\n"),
        ),
        ("lingers",),
    ),
    Mutant(
        "a number that a former life may have under way is used again", 3,
        (
            Edit("core/lease.py", "self.floors.get(self.me, -1)) + former\n", "self.floors.get(self.me, -1))\n"),
            Edit("core/arbitration.py", "        elif seen is not None and slot.seq == seen.slot.seq and slot != seen.slot:\n", "        elif False:\n"),
        ),
        ("lingers",),
    ),
    Mutant(
        "who had a group last is forgotten over a restart", 7,
        (
            Edit("core/state.py", "            self.last_owner[group] = node\n            self.journal.changed = True\n", "            self.last_owner[group] = node\n"),
            Edit("core/talk.py", "                        state.had_by(name, peer.name)\n", "                        pass\n"),
        ),
        ("reborn",),
    ),
    Mutant(
        "what a former life of a node said is acknowledged to its next", 8,
        (Edit("core/talk.py", "        received = stream.received if echoed[0] == peer.incarnation else 0\n", "        received = stream.received\n"),),
        ("changes",),
    ),
    Mutant(
        "a late word of a node's former life is taken for its next", 8,
        (Edit("core/peers.py", "    if not known and peer.incarnation and asked.sent_ns <= peer.met_ns:\n", "    if False:\n"),),
        ("slow changes",),
    ),
    Mutant(
        "a register is confirmed before it is durable", 11,
        (Edit("core/following.py", "        if self.state.persisted_version >= follow.kept:", "        if True:"),),
        ("durable",),
    ),
    Mutant(
        "a required before_start that failed is passed over", 11,
        (Edit("core/hooks.py", "            if event.stopped:\n", "            if False:\n"),),
        ("hooks",),
    ),
    Mutant(
        "a group is started beside its before_start", 11,
        (Edit("core/running.py", "        if self.hooks.on or self.start_failed:\n            return\n", "        if self.start_failed:\n            return\n"),),
        ("hooks",),
    ),
    Mutant(
        "a late answer of a hook counts for the next one", 11,
        (
            Edit("core/hooks.py", "        if event.attempt and event.attempt != self.attempt and event.on != \"after_stop\":\n            return\n", ""),
            Edit("core/hooks.py", "        if event.attempt and event.attempt == self.attempt:\n", "        if event.on == self.on:\n"),
        ),
        ("hooks",),
    ),
    Mutant(
        "a move that an engine's end cuts off is forgotten", 9,
        (Edit("core/durable.py", "            self.state.unfinished[held.group] = move\n", "            pass\n"),),
        ("moved",),
    ),
    Mutant(
        "a move that an engine's end cuts off is given up to whoever may be there", 9,
        (Edit("core/moving.py", "        if move is not None and move.again and not _has_a_taker(state, name, move):\n", "        if False:\n"),),
        ("moved",),
    ),
    Mutant(
        "a refusal does not say which number is too low", 11,
        (Edit("core/lease.py", "                return GroupEntry(self.group.name, GroupFlag(0), self.next_token() - 1)\n", "                return None\n"),),
        ("moved none", "moved fence"),
    ),
    Mutant(
        "a move that an engine's end cuts off goes on without its hooks", 11,
        (Edit("core/durable.py", "                stopping=bool(stopping), again=True, ", "                stopping=True, again=True, "),),
        ("moved",),
    ),
)  # fmt: skip
