"""Tells a run: one line for each event and effect that matters, in the past tense. Heartbeats are left out unless asked."""

from __future__ import annotations

from hasnmp.core.events import (
    Act,
    Action,
    AgentResult,
    ArbiterAnswer,
    ArbiterCall,
    Effect,
    Event,
    Exit,
    Extend,
    Extended,
    Fence,
    Fenced,
    Hook,
    HookEnded,
    Notify,
    Outcome,
    Received,
    Release,
    Released,
    Reply,
    Send,
    Sent,
    ServiceExited,
    Shutdown,
)
from hasnmp.wire import Datagram, DatagramKind, GroupFlag, Slot

WITH_HEARTBEATS = False  # set by `--heartbeats`


def datagram_text(d: Datagram) -> str:
    groups = ", ".join(
        f"{g.group} token {g.token} {'+'.join(f.name or '' for f in GroupFlag if f in g.flags)}"
        + (f" {g.duration_ms} ms" if g.duration_ms else "")
        for g in d.groups
    )
    flags = f" [{d.flags!r}]" if d.flags else ""
    return f"{d.kind.name.lower()} {d.sender} -> {d.receiver} seq {d.seq} echo {d.echo_seq}{flags}: {groups}"


def slot_text(slot: Slot | str) -> str:
    if isinstance(slot, str):
        return slot
    return f"{slot.state.name} seq {slot.seq} token {slot.token} holder {slot.holder[:4]} for {slot.duration_ms} ms"


def event_text(event: Event) -> str:
    """What the engine learned; "" for what is not worth a line."""
    match event:
        case Received(link, datagram):
            interesting = WITH_HEARTBEATS or datagram.kind is DatagramKind.EXCHANGE
            return f"got over {link}: {datagram_text(datagram)}" if interesting else ""
        case Sent(seq, at_ns):
            return f"learned that {seq} left at {at_ns}" if WITH_HEARTBEATS else ""
        case Extended(leases, ok):
            if ok and not WITH_HEARTBEATS:
                return ""
            return f"learned that {leases} {'count' if ok else 'were refused'}"
        case Released(group, token, ok, text):
            return f"learned that {group} token {token} was {'released' if ok else 'not released: ' + text}"
        case ArbiterAnswer(attempt=attempt, group=group, error=error, slots=slots):
            read = "; ".join(f"{node}: {slot_text(slot)}" for node, slot in slots.items())
            return f"learned from the arbiter of {group} (call {attempt}): {error or read}"
        case AgentResult(service=service, outcome=outcome, attempt=attempt):
            return f"learned of {service} (act {attempt}): {outcome.value}" if outcome is not Outcome.OK else ""
        case ServiceExited(service, pid):
            return f"learned that {service} (pid {pid}) ended by itself"
        case HookEnded(_, group, on, failures, stopped):
            return f"heard that {on} of {group} {'failed and stops it' if stopped else 'failed' if failures else 'ended well'}"
        case Fenced(_, node, level, action, ok, text):
            return f"learned of {action.value} of {node} by level {level}: {'done' if ok else text}"
        case Shutdown():
            return "was told to leave"
        case _:
            return ""


def effect_text(effect: Effect) -> str:
    """What the engine did; "" for what is not worth a line."""
    match effect:
        case Send(datagram, link):
            interesting = WITH_HEARTBEATS or datagram.kind is DatagramKind.EXCHANGE or datagram.flags & 8
            return f"sent over {link or 'all links'}: {datagram_text(datagram)}" if interesting else ""
        case Extend(leases):
            text = ", ".join(f"{held.group} token {held.token} until {held.until_ns}" for held in leases)
            return f"told the guardian: {text}" if WITH_HEARTBEATS else ""
        case Hook(_, group, on):
            return f"runs hook {on} of {group}"
        case Fence(attempt, node, level, action):
            return f"ordered {action.value} of {node} by level {level} (attempt {attempt})"
        case Release(group, token):
            return f"released {group}, token {token}"
        case ArbiterCall(attempt, group, slot):
            return f"asked the arbiter of {group} (call {attempt}) to {'read' if slot is None else 'write ' + slot_text(slot)}"
        case Act(attempt, service, action):
            return f"ordered {action.value} of {service} (act {attempt})" if action is not Action.CHECK else ""
        case Notify(event):
            return f"notified {event.kind.value}: {event.message}"
        case Reply(_, command):
            return f"answered {command.verb.name}: {command.state.name} {command.text}"
        case Exit(text):
            return f"left: {text}"
        case _:
            return ""


def tell(now_ns: int, who: str, text: str) -> None:
    """Print a line as it comes: true time in ms, who, what."""
    print(f"{now_ns / 1e6:11.3f} ms  {who:<16} {text}")
