"""The other nodes: whose word is fresh, which links carry it, and who has fallen silent.

Design rule 8. A datagram counts as life, promise, release or command only if it echoes a sequence number that this very
incarnation sent within dead_after_ms. A replay, a rollback and a link that carries one way only fail that test alike.
Here is only what is heard; what follows from silence is decided by placement.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hasnmp.core.context import MS, Context
from hasnmp.model import LinkState, NodeState
from hasnmp.wire import Datagram, DatagramKind, GroupEntry, GroupFlag, NodeFlag


@dataclass(slots=True)
class Link:
    """One link to one peer."""

    name: str
    address: str
    state: LinkState = LinkState.UNKNOWN
    seq: int = 0  # the highest that came over this link from the present incarnation
    heard_ns: int = 0  # fresh
    sent: int = 0
    received: int = 0
    lost: int = 0  # heartbeats without an answer within dead_after_ms, while the peer was up
    round_trip_us: int = 0
    changed_ns: int = 0
    transitions: int = 0


@dataclass(slots=True)
class Asked:
    """One of our own datagrams to the peer: when it was sent (read before), and over which links it was answered."""

    sent_ns: int
    heartbeat: bool
    answered: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Peer:
    name: str
    links: dict[str, Link]
    state: NodeState = NodeState.UNKNOWN
    incarnation: int = 0
    met_ns: int = 0  # when that one was first heard
    retired: list[int] = field(default_factory=list)  # incarnations that were followed by another
    holder: str = ""
    digest: str = ""
    same: bool = False  # it was heard, in this life, to have our file
    told: bool = False  # it said, in this life, which groups it has
    flags: NodeFlag = NodeFlag(0)
    said: tuple[GroupEntry, ...] = ()  # by its newest heartbeat
    groups: dict[str, GroupEntry] = field(default_factory=dict)  # the same, by group
    seq: int = 0  # the highest taken in, over any link
    echo: tuple[int, int] = (0, 0)  # (incarnation, seq) that we echo to it
    heard_ns: int = 0
    changed_ns: int = 0
    transitions: int = 0
    received: int = 0
    late_count: int = 0
    late: bool = False
    asked: dict[int, Asked] = field(default_factory=dict)  # seq -> ours within dead_after_ms

    def up(self) -> bool:
        return self.state is NodeState.UP

    def heard(self) -> bool:
        """Is its word fresh? It may still be starting."""
        return self.state in (NodeState.UP, NodeState.STARTING)

    def forget(self) -> None:
        """What it said of its groups is over. It may be heard again by an answer, long before its next heartbeat."""
        self.said, self.groups = (), {}

    def flag(self, group: str, flag: GroupFlag) -> bool:
        """What its newest heartbeat says of the group; False when that is no longer fresh."""
        entry = self.groups.get(group)
        return self.heard() and entry is not None and bool(entry.flags & flag)


@dataclass(frozen=True, slots=True)
class Heard:
    """What take_in() made of one datagram."""

    fresh: bool
    first: bool  # not seen over another link before
    asked_ns: int = 0  # fresh: when what it echoes was sent
    restarted: bool = False  # a new incarnation


STALE = Heard(False, False)


def take_in(peer: Peer, link: str, datagram: Datagram, incarnation: int, ctx: Context) -> tuple[Heard, str]:
    """Judge one datagram of this peer and note its life. Returns what it is worth, and the counter that refuses it."""
    hb = ctx.config.heartbeat
    way = peer.links.get(link)
    if way is None:
        return STALE, "foreign"
    if datagram.incarnation in peer.retired:
        return STALE, "replayed"
    known = datagram.incarnation == peer.incarnation
    if known and datagram.seq <= way.seq:
        return STALE, "replayed" if datagram.seq == way.seq else "reordered"
    asked = peer.asked.get(datagram.echo_seq) if datagram.echo_incarnation == incarnation else None
    if asked is None or ctx.now - asked.sent_ns > hb.dead_after_ms * MS:
        # Not a word to count; but a heartbeat gets a bare answer to echo, or no two would ever begin, nor begin again.
        return STALE, "stale" if datagram.echo_seq else ""
    if not known and peer.incarnation and asked.sent_ns <= peer.met_ns:
        # One of the two is over, and this may be the word of that one, come late. The one that lives will echo what we sent
        # since: whoever was over when the other was heard can't.
        return STALE, "stale"
    if not known:
        if peer.incarnation:
            peer.retired = [*peer.retired[-15:], peer.incarnation]
        peer.incarnation, peer.seq, peer.met_ns = datagram.incarnation, 0, ctx.now
        peer.forget()
        for other in peer.links.values():
            other.seq = 0
    first = datagram.seq > peer.seq
    way.seq = datagram.seq
    way.received += 1
    way.heard_ns = peer.heard_ns = ctx.now
    if first:
        peer.seq = datagram.seq
        peer.echo = (datagram.incarnation, datagram.seq)
        if (peer.holder, peer.digest) != (datagram.holder, datagram.digest):
            peer.holder, peer.digest = datagram.holder, datagram.digest
            peer.same |= ctx.config.goes_with(peer.digest)
            ctx.dirty = True
    if datagram.kind is DatagramKind.ANSWER and asked.heartbeat:
        asked.answered.add(link)
        way.round_trip_us = (ctx.now - asked.sent_ns) // 1000
    return Heard(True, first, asked.sent_ns, not known), ""


def forget_old(peer: Peer, ctx: Context) -> None:
    """Drop what was sent longer ago than dead_after_ms, and count the heartbeats that no link answered."""
    horizon = ctx.now - ctx.config.heartbeat.dead_after_ms * MS
    for seq in [s for s, a in peer.asked.items() if a.sent_ns < horizon]:
        asked = peer.asked.pop(seq)
        if asked.heartbeat and peer.heard():
            for link in peer.links.values():
                link.lost += link.name not in asked.answered


def silence(peer: Peer, ctx: Context) -> tuple[bool, bool, list[Link]]:
    """What time alone says of a peer that was heard: (is late, is lost, the links that fell silent just now).

    Wakes the engine for the next of these moments.
    """
    hb = ctx.config.heartbeat
    if not peer.heard_ns or not peer.heard():
        return False, False, []
    late_at = peer.heard_ns + hb.late_after_ms * MS
    lost_at = peer.heard_ns + hb.dead_after_ms * MS
    ctx.wake(lost_at if ctx.now >= late_at else late_at)
    down = []
    for link in peer.links.values():
        if link.state is LinkState.DOWN:
            continue
        end = max(link.heard_ns, peer.changed_ns) + hb.dead_after_ms * MS
        if ctx.now >= end and ctx.now - peer.heard_ns >= 2 * hb.interval_ms * MS:
            continue  # it is the peer that falls silent, not the link alone
        elif ctx.now >= end:
            down.append(link)
        else:
            ctx.wake(end)
    return ctx.now >= late_at, ctx.now >= lost_at, down
