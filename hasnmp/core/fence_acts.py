"""Fencing as it is done: begins what is wanted (fencing.py says what), takes the answers, and tests the devices now and then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hasnmp.core.board import INHIBIT, RECOVERING
from hasnmp.core.context import MS
from hasnmp.core.events import Fence, FenceAction, Fenced
from hasnmp.core.fencing import DISK, LIFE, Attempt, Device, concerns, ended, levels, may_fence, turn_of
from hasnmp.core.journal import clip
from hasnmp.core.lease import Lease
from hasnmp.errors import Code, Refused
from hasnmp.model import GroupState, Kind, NodeState, Reason
from hasnmp.settings import FenceLevel, Group

if TYPE_CHECKING:
    from hasnmp.core.state import State

AGAIN_MS = 1000  # after every level of a node failed; twice as long each time ...
AGAIN_MOST_MS = 10_000  # ... up to this
GRACE_MS = 1000  # beyond a level's own time limit, an attempt without an answer has failed
FIRST_TEST_MS = 10_000  # after the start, the devices are asked for the first time
SPOKEN_MS = 5000  # a suspect that is heard gets this long to end what it has, and to say so, before it is fenced


def look(state: State) -> None:
    """Begin what is wanted, end what has taken too long, and ask the devices now and then."""
    fencing, ctx = state.fencing, state.ctx
    if not any(n.fence for n in state.config.nodes):
        fencing.wanted.clear()
        return
    _want(state)
    for node, attempt in list(fencing.attempts.items()):
        if ctx.now >= attempt.until:
            _failed(state, node, attempt, "no answer within its time limit")
        else:
            ctx.wake(attempt.until)
    for node, (why, cuts, end) in fencing.wanted.items():
        _fence(state, node, why, cuts, end)
    _settled(state)
    fencing.wanted.clear()
    _test(state)


def _settled(state: State) -> None:
    """A node that could not be fenced, and need not be any more: it is back, and clean by its own word, or was ended from elsewhere."""
    fencing = state.fencing
    for node, peer in state.peers.items():
        # Whoever owns a group by its own word just now is always one of its suspects, should it fall silent. (A group that the
        # configuration does not have any more keeps its suspects, for it may come back; but nobody takes it.)
        suspected = any(
            node in fencing.suspects.get(group, {}) and state.owner(group) != node for group in state.leases
        )
        settled = (peer.heard() and not suspected) or node in fencing.ended
        if settled and node not in fencing.wanted and node not in fencing.attempts:
            elsewhere = "was ended by another node, or is off by its administrator's word,"
            how = "is heard again" if peer.heard() else elsewhere
            state.journal.clear(
                state.ctx, Kind.FENCE_SUCCEEDED, node, f"{node} {how} and need not be fenced", peer=node, reason=Reason.FENCED,
            )  # fmt: skip


def _want(state: State) -> None:
    for group in state.config.groups:
        lease, name = state.leases[group.name], group.name
        owner = state.owner(name)
        if owner == state.me and name in state.fencing.held and lease.alive(state.ctx) and may_fence(state, name):
            silent = [n for n in state.fencing.suspects.get(name, {}) if not state.peers[n].heard()]
            for node in state.fencing.suspects.get(name, {}):
                # One that is heard may be about to say that it is clean: it has just promised, or withdrawn a claim.
                patient_until = state.fencing.held[name] + SPOKEN_MS * MS
                turn, end = state.ctx.now, 0
                if state.peers[node].heard():
                    turn = patient_until
                elif state.config.arbiter.type != "disk":  # no lease decides who fires: both of us may get here
                    turn, end = turn_of(state, node, silent)
                if turn > state.ctx.now:
                    state.ctx.wake(turn)
                    continue
                state.fencing.wanted.setdefault(node, (f"it had {name} and may still write to its disk", DISK, end))
        elif owner == state.me and state.config.arbiter.type == "fence" and lease.alive(state.ctx):
            _defend(state, group, lease)
        elif owner and owner != state.me and group.on_stop_failure == "fence":
            facts = state.board.groups[name]
            blocked = facts.owner == owner and facts.state is GroupState.BLOCKED
            inhibited = state.board.registers.get(INHIBIT, name) or state.board.registers.get(INHIBIT)
            if (
                inhibited or not may_fence(state, name) or owner in state.fencing.ended
            ):  # nobody would take it; or it was done, and is not lost yet
                continue
            if blocked and next(iter(n for n in group.nodes if n != owner and state.able(name, n)), "") == state.me:
                state.fencing.wanted.setdefault(owner, (f"it can't stop {name}", DISK if concerns(group) else LIFE, 0))


def _defend(state: State, group: Group, lease: Lease) -> None:
    """The arbiter `fence`: whoever is silent will fence this node to take the group, so the owner fires first."""
    registers = state.board.registers
    if registers.get(INHIBIT, group.name) or registers.get(INHIBIT):
        return
    silent = [
        n for n in lease.others
        if state.peers[n].state is NodeState.LOST and n not in lease.left and n not in state.fencing.ended
    ]  # fmt: skip
    for node in silent:
        turn, end = turn_of(state, node, silent)
        if turn > state.ctx.now:
            state.ctx.wake(turn)
            continue
        why = f"{state.me} has {group.name}, and it is silent"
        state.fencing.wanted.setdefault(node, (why, frozenset({"power"}) if concerns(group) else LIFE, end))


def _fits(state: State, node: str, level: int, at: int, end: int) -> int:
    """The time limit (ms) of a use of that level which begins then: its own, or what is left of our turn, unless that is less
    than half of it; 0: it is not used any more in this turn."""
    own = state.config.node(node).fence[level].timeout_ms
    left = (end - at) // MS if end else own
    return min(own, left) if 2 * left >= own else 0


def _fence(state: State, node: str, why: str, cuts: frozenset[str], end: int) -> None:
    fencing, ctx = state.fencing, state.ctx
    usable = levels(state, node, cuts)
    under_way = fencing.attempts.get(node)
    if not usable or (under_way is not None and under_way.action is FenceAction.FENCE):
        return
    if ctx.now < fencing.retry_at.get(node, 0):
        ctx.wake(fencing.retry_at[node])
        return
    level = next((i for i in usable if i >= fencing.next_level.get(node, 0)), usable[0])
    if not _fits(state, node, level, ctx.now, end):
        fencing.next_level[node] = 0
        ctx.wake(end)
        return
    settings = _begin(state, node, level, FenceAction.FENCE, why, cuts, end)
    state.journal.happened(
        ctx, Kind.FENCE_STARTED, f"{state.me} fences {node} by {settings.agent} ({settings.cuts}, level {level + 1}): {why}",
        peer=node, peer_state=int(state.peers[node].state), reason=Reason.FENCED,
    )  # fmt: skip


def _begin(
    state: State,
    node: str,
    level: int,
    action: FenceAction,
    why: str,
    cuts: frozenset[str] = frozenset(),
    end: int = 0,
) -> FenceLevel:
    ctx, settings = state.ctx, state.config.node(node).fence[level]
    limit_ms = _fits(state, node, level, ctx.now, end)
    until = ctx.now + (limit_ms + GRACE_MS) * MS
    number = ctx.attempt()
    state.fencing.attempts[node] = Attempt(number, level, action, until, why, cuts, limit_ms, end)
    ctx.wake(until)
    ctx.emit(Fence(number, node, level, action, limit_ms))
    return settings


def answered(state: State, event: Fenced) -> None:
    """What came of an attempt. A late answer is of no attempt any more: that fence has not happened."""
    attempt = state.fencing.attempts.get(event.node)
    if attempt is None or attempt.number != event.attempt:
        number, before = state.fencing.fenced.get(event.node, (0, ""))
        if event.ok and event.attempt == number and event.text != before:
            _told_more(state, event)
        return
    state.ctx.dirty = True
    limit = attempt.limit_ms
    if event.ok and event.took_us > limit * 1000:
        _failed(state, event.node, attempt, f"answered after {event.took_us // 1000} ms, the limit is {limit} ms")
    elif not event.ok:
        _failed(state, event.node, attempt, event.text)
    elif attempt.action is FenceAction.TEST:
        del state.fencing.attempts[event.node]
        _good(state, event.node, attempt.level, f"tested: {event.text}".rstrip(": "))
    else:
        state.fencing.fenced[event.node] = (event.attempt, event.text)
        _succeeded(state, event.node, attempt, event.text)


def _told_more(state: State, event: Fenced) -> None:
    """Once more of a fence that has happened: whether the node was switched on again. It ends nothing and begins nothing."""
    state.fencing.fenced[event.node] = (event.attempt, event.text)
    _device(state, event.node, event.level).result = clip(f"fenced: {event.text}")
    state.journal.note(
        state.ctx, Kind.FENCE_SUCCEEDED, f"{event.node} was fenced: {event.text}", peer=event.node, reason=Reason.FENCED
    )


def _device(state: State, node: str, level: int) -> Device:
    return state.fencing.devices.setdefault((node, level), Device())


def _good(state: State, node: str, level: int, text: str) -> None:
    device = _device(state, node, level)
    device.result, device.good_ms, device.since_ms = clip(text), state.ctx.wall_ms(), 0
    state.journal.changed = True
    state.journal.clear(
        state.ctx, Kind.FENCE_TESTED, f"{node}/{level + 1}", f"fence level {level + 1} of {node} answers well", peer=node,
        reason=Reason.FENCED,
    )  # fmt: skip


def _failed(state: State, node: str, attempt: Attempt, text: str) -> None:
    fencing, ctx = state.fencing, state.ctx
    del fencing.attempts[node]
    device = _device(state, node, attempt.level)
    device.result = clip(f"{'test ' if attempt.action is FenceAction.TEST else ''}failed: {text}")
    device.since_ms = device.since_ms or ctx.wall_ms()
    state.journal.changed = ctx.dirty = True
    if attempt.action is FenceAction.TEST:
        _overdue(state, node, attempt.level, device)
        return
    device.used_ms = ctx.wall_ms()
    fencing.next_level[node] = attempt.level + 1
    if any(i > attempt.level for i in levels(state, node, attempt.cuts)):
        return  # the next level is tried at once, if it is still wanted
    fencing.next_level[node] = 0
    again_ms = min(AGAIN_MS << min(fencing.failures.get(node, 0), 10), AGAIN_MOST_MS)
    fencing.failures[node] = fencing.failures.get(node, 0) + 1
    fencing.failed_at[node], fencing.retry_at[node] = ctx.now, ctx.now + again_ms * MS
    ctx.wake(fencing.retry_at[node])
    first = levels(state, node, attempt.cuts)[0]
    when = (
        f"in {again_ms // 1000} s"
        if _fits(state, node, first, fencing.retry_at[node], attempt.end)
        else "in its next turn"
    )
    state.journal.happened(
        ctx, Kind.FENCE_FAILED,
        f"{node} could not be fenced ({attempt.why}): {text}; tried again {when}; if it is off for certain: "
        f"hasnmp fence confirm {node}", of=node, peer=node, reason=Reason.FENCED,
    )  # fmt: skip


def _succeeded(state: State, node: str, attempt: Attempt, text: str) -> None:
    settings = state.config.node(node).fence[attempt.level]
    del state.fencing.attempts[node]
    device = _device(state, node, attempt.level)
    device.used_ms = state.ctx.wall_ms()
    _good(state, node, attempt.level, f"fenced: {text}".rstrip(": "))
    state.fencing.next_level.pop(node, None)
    state.fencing.failures.pop(node, None)
    for stream in state.streams.values():
        stream.put(f"f/{node}", [state.peers[node].holder, settings.cuts])
    if settings.cuts != "network" and not state.config.recovery_automatic:
        state.set_register(RECOVERING, node, f"fenced by {state.me}: {attempt.why}")
    ended(state, node, settings.cuts)
    state.journal.happened(
        state.ctx, Kind.FENCE_SUCCEEDED, f"{node} is fenced by {settings.agent} ({settings.cuts}): {attempt.why}", of=node,
        peer=node, reason=Reason.FENCED, always=True,
    )  # fmt: skip


def confirm(state: State, node: str, by: str, reason: str) -> str:
    """`hasnmp fence confirm`: the administrator's word that the node is off. Raises Refused: it is not."""
    if node == state.me:
        raise Refused(Code.NOT_ALLOWED, f"fence confirm {node} refused: it is the node that is asked; ask another one")
    peer = state.peers[node]
    if peer.heard():
        raise Refused(
            Code.NOT_ALLOWED,
            f"fence confirm {node} refused: it is not off, it was heard {state.seconds(peer.heard_ns)} ago; power it off first",
        )
    text = f"{node} is off for certain, by the word of {by}" + (f": {reason}" if reason else "")
    had = [found[node].holder for found in state.fencing.suspects.values() if node in found]
    holder = peer.holder or next(iter(had), "")
    ended(state, node, "confirmed")
    if holder:
        for stream in state.streams.values():
            stream.put(f"f/{node}", [holder, "confirmed"])
    elif others := [p.name for p in state.peers.values() if p.heard()]:
        text += (
            f"; {state.me} has not heard it since its start and can't tell the others which life of it is meant: "
            f"run hasnmp fence confirm {node} on {', '.join(others)} too"
        )
    state.journal.happened(
        state.ctx, Kind.FENCE_SUCCEEDED, text, of=node, peer=node, reason=Reason.OPERATOR, always=True
    )
    return text


def told(state: State, node: str, value: Any) -> None:
    """A peer fenced that node, or was told that it is off. Raises TypeError, ValueError, IndexError: not of this form."""
    holder, cut = str(value[0]), str(value[1])
    peer = state.peers.get(node)
    later = any(node in found and found[node].holder != holder for found in state.fencing.suspects.values())
    if peer is None or peer.holder not in ("", holder) or later:
        return
    if peer.heard():
        # We notice later than who fenced it. What it said before may still be on its way, so it is alive only if it answers
        # what is sent from now on; if it falls silent, the word counts.
        state.fencing.hearsay[node] = (holder, cut)
        peer.asked.clear()
    else:
        ended(state, node, cut, holder)


# --------------------------------------------------------------------------------------------------------------- tests


def _test(state: State) -> None:
    """Ask each device of the other nodes every test_every_s, one after another; tell when one was bad for too long."""
    fencing, ctx, rule = state.fencing, state.ctx, state.config.fencing
    for node in state.config.nodes:
        if node.name == state.me:
            continue
        for level in range(len(node.fence)):
            device = _device(state, node.name, level)
            if rule.test_every_s:
                if not device.test_at:
                    first = FIRST_TEST_MS * MS + ctx.jitter(FIRST_TEST_MS * MS)
                    device.test_at = state.started_ns + first
                if ctx.now >= device.test_at:
                    device.test_at = ctx.now + rule.test_every_s * 1000 * MS
                    fencing.tests.append((node.name, level))
                ctx.wake(device.test_at)
            _overdue(state, node.name, level, device)
    for node_name, level in list(fencing.tests):
        if node_name not in fencing.attempts:
            fencing.tests.remove((node_name, level))
            _begin(state, node_name, level, FenceAction.TEST, "its test")


def test(state: State, node: str) -> None:
    """`hasnmp fence test`: ask every device of the node now. Raises Refused: there is none, or it is our own node."""
    if node == state.me:
        raise Refused(
            Code.NOT_ALLOWED, f"fence test {node} refused: a node's devices are tested by the others; ask another one"
        )
    if not state.config.node(node).fence:
        raise Refused(Code.NOT_FOUND, f"fence test {node} refused: it has no fence device; see `fence` of the node")
    state.fencing.tests += [(node, level) for level in range(len(state.config.node(node).fence))]
    state.ctx.dirty = True


def testing(state: State, node: str) -> bool:
    return node in state.fencing.attempts or any(n == node for n, _ in state.fencing.tests)


def tested(state: State, node: str, since_ms: int) -> tuple[bool, str]:
    """Did every device of the node answer well since then? And what each said."""
    devices = [(i + 1, _device(state, node, i)) for i in range(len(state.config.node(node).fence))]
    text = "; ".join(f"level {i}: {d.result or 'no answer'}" for i, d in devices)
    return all(d.good_ms >= since_ms and not d.since_ms for _, d in devices), f"fence devices of {node}: {text}"


def _overdue(state: State, node: str, level: int, device: Device) -> None:
    last = device.good_ms or device.since_ms
    never = not device.good_ms and device.since_ms
    if device.since_ms and (never or not state.ctx.lately((last,), state.config.fencing.test_alarm_s)):
        when = f"for {abs(state.ctx.wall_ms() - last) // 1000} s" if not never else "yet"
        agent = state.config.node(node).fence[level].agent
        state.journal.happened(
            state.ctx, Kind.FENCE_UNTESTED,
            f"fence level {level + 1} of {node} ({agent}) has not answered well {when}: {device.result}; then: hasnmp fence test {node}",
            of=f"{node}/{level + 1}", peer=node, reason=Reason.FENCED,
        )  # fmt: skip
