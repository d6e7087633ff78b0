"""One group's lease on this node: what it promised, what it was promised, and what it wrote to the arbiter.

The theory (design rules 1 to 4; ARCHITECTURE.md names the test and the mutant of each).

A node runs a group only while it holds the group's lease. Two things give one:

  promises   every other node of the group has promised not to take it. Each heartbeat asks, each answer promises
             `duration_ms`. The owner counts from the clock it read *before the ask was sent* x 0.99, the promiser from
             the clock *after its answer was sent* x 1.01: so the owner's end always comes before the promiser's.
  arbiter    this node wrote its slot and *then* read no standing record of another node. It counts from the clock
             read before the write x 0.99; whoever waits for it to lapse counts from the clock after the read that first
             showed that sequence number, with the duration that stands in the record, x 1.01.

The lease ends at the later of the two. A node takes a group only when its own promise has lapsed: then every lease that
rested on that promise is over too, and what is left is to get the others' promises, or to win the arbiter.

A node promises to one holder at most, and asking or claiming is promising to itself. Fischer's argument gives the rest:
of two that wrote, at least one reads after the other's write.

The engine relies on an expiry only once the guardian has acknowledged it (`acked`), and counts itself out `kill_ms`
before that end, when the guardian starts to kill.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from hasnmp.core.context import MS, Context
from hasnmp.core.events import ArbiterAnswer, ArbiterCall, HeldLease, Release
from hasnmp.model import Proof
from hasnmp.settings import Group
from hasnmp.wire import Datagram, GroupEntry, GroupFlag, Slot, SlotState

OWNER_PART = 99  # per cent: an owner counts its time short ...
TAKER_PART = 101  # ... and everyone who waits for it counts it long: clocks may drift apart by 1 % each
LONE_MS = 2000  # how long a group that only one node may run is leased to it at a time
UNKNOWN_HOLDER = "?"  # promised before this engine's start, to a holder that it can't know


class Phase(Enum):
    NONE = "none"  # no lease, and not after one
    TAKING = "taking"  # asks, and claims the arbiter if need be: promised to itself
    HELD = "held"  # granted; it counts once `acked`
    RELEASING = "releasing"  # stopped; the guardian is asked to confirm; still renewed
    LOST = "lost"  # it ran out: the guardian is killing the group, and this engine with it


@dataclass(slots=True)
class Seen:
    """Another node's slot as last read. first_ns: the clock after the read that first showed this seq."""

    slot: Slot
    first_ns: int

    def standing(self, now: int) -> bool:
        """May the record's writer still count on it? By the duration in the record, never by our own configuration."""
        return (
            self.slot.state in (SlotState.CLAIM, SlotState.HELD)
            and now < self.first_ns + self.slot.duration_ms * MS * TAKER_PART // 100
        )


@dataclass(slots=True)
class Lease:
    """The lease of one group on this node. All times are this node's CLOCK_BOOTTIME in ns."""

    group: Group
    me: str
    others: tuple[str, ...]  # the group's other nodes
    holder: str = ""
    phase: Phase = Phase.NONE
    token: int = 0  # of our own taking, holding or releasing
    token_seen: int = 0  # the highest under which somebody was seen to own or take the group
    seen_owner: str = ""  # who that was
    released_token: int = 0  # of the lease that we gave up last: heartbeats go on saying so
    asked_token: int = 0  # that another node asks for, and that our durable ceiling does not cover yet
    token_floor: int = 0  # never below token_seen: every number that others may have used; a new token is above it
    # what we promised
    promised_to: str = ""  # a holder
    promised_node: str = ""
    promised_token: int = 0
    promised_until: int = 0
    unsent: dict[int, int] = field(default_factory=dict)  # answers without a receipt yet: seq -> duration in ns
    forever_ms: int = 0  # not 0: the promise is durable until its holder is heard again (we left in order); its piece
    forever_durable: bool = False  # it is on the disk, so it may be told
    forever_seq: int = 0  # of the holder's slot when we left: a later one tells whether that holder is gone
    # what we were promised
    promises: dict[str, int] = field(default_factory=dict)  # node -> the end, by our clock
    asked: dict[str, int] = field(default_factory=dict)  # node -> when the newest answered ask was sent
    left: dict[str, int] = field(default_factory=dict)  # node that left in order -> ms we may count at a time
    # `none`: of several owners that hear each other this one goes on, and needs nobody's promise before that
    first_until: int = 0
    taking_since: int = 0
    retry_at: int = 0
    # the arbiter
    seen: dict[str, Seen] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)  # node -> why its slot can't be used
    slot_seq: int = -1  # of our own slot; -1: not read yet, so nothing may be written
    slot_state: SlotState = SlotState.IDLE  # as last written, or as it may have been written
    lived: bool = False  # this node had a former life, of which a write may still be on its way to the disk
    damaged: bool = False  # our own slot can't be used, as last read
    floors: dict[str, int] = field(default_factory=dict)  # node -> the highest sequence of its slot that was ever read
    told_floors: dict[str, tuple[int, int]] = field(default_factory=dict)  # node -> the same by its own word, and when
    call: ArbiterCall | None = None  # the one that is under way
    called_at: int = 0
    farewelled: bool = False  # our slot says that this holder is gone: nothing is written over that
    rewrite: bool = False  # a write failed or an older one landed after it: nobody knows what our slot says
    arbiter_until: int = 0
    read_at: int = 0  # when the slots were last read
    renew_at: int = 0
    rest_at: int = 0  # when RESTING is written again, if it could not be
    probe_at: int = 0
    prove_at: int = 0  # when to write a resting slot again
    conflict: str = ""  # why the last claim did not count
    # the guardian
    until: int = 0  # granted
    told: int = 0  # the newest expiry handed to the guardian
    acked: int = 0  # the newest that it acknowledged

    # ------------------------------------------------------------------------------------------- what we promised

    def promise_stands(self, now: int) -> bool:
        """Is this node still bound to somebody? (An answer without a receipt binds without end: it may leave yet.)"""
        return bool(self.forever_ms or self.unsent) or now < self.promised_until

    def answer(self, entry: GroupEntry, asker: Datagram, seq: int, ctx: Context, duration_ms: int) -> GroupEntry | None:
        """The promise that answers one fresh ask, None: refused; without the flag PROMISE: refused for its number, which must be
        higher than this. Only the owner is promised during a disagreement on the configuration; that is the caller's check."""
        if self.phase is Phase.TAKING and self._yields_to(asker.sender, entry):
            self.abandon(ctx, f"{asker.sender} has it or asks for it, and comes first")
        if self.phase is not Phase.NONE:
            return None
        stands = self.promise_stands(ctx.now)
        if stands and self.promised_to == UNKNOWN_HOLDER and entry.flags & GroupFlag.OWNER and not self.forever_ms:
            # A lease that counts now, after our start: it shut out every other holder that we can have promised before.
            stands = False
        if stands and self.promised_to != asker.holder:
            return None
        if not entry.flags & GroupFlag.OWNER:
            # A new lease needs a token that nobody can have used, by all that we know, and we may know more than it.
            again = (self.promised_to, self.promised_token) == (asker.holder, entry.token)
            if not again and entry.token < self.next_token():
                # No promise, but the number to be above: a heartbeat of ours does not tell it (what we promised; RELEASED).
                return GroupEntry(self.group.name, GroupFlag(0), self.next_token() - 1)
        elif not stands and (
            entry.token < self.token_seen
            or (
                entry.token == self.token_seen and self.seen_owner != asker.sender and ctx.config.arbiter.type != "none"
            )
        ):
            # A lease that somebody has outbid is not begun again. (With `none` two that could not hear each other may have had
            # one number, and the other one has stopped.)
            return None
        if entry.flags & GroupFlag.OWNER:
            self.learn(entry.token, asker.sender)
        self.promised_to, self.promised_node, self.promised_token = asker.holder, asker.sender, entry.token
        self.unsent[seq] = duration_ms * MS * TAKER_PART // 100
        lasting = GroupFlag.FOREVER if self.forever_durable and self.forever_ms else GroupFlag(0)
        return GroupEntry(self.group.name, GroupFlag.PROMISE | lasting, entry.token, duration_ms)

    def sent(self, seq: int, at_ns: int) -> None:
        """The answer left at at_ns, read after it was sent: only now does the promise's time begin."""
        duration = self.unsent.pop(seq, None)
        if duration is not None:
            self.promised_until = max(self.promised_until, at_ns + duration)

    def heard_release(self, entry: GroupEntry, sender: str, holder: str) -> None:
        """The holder gave (group, token) up: a promise for it is void, for it can't be renewed any more."""
        if self.promised_to == holder and self.promised_token <= entry.token:
            self.promised_until = 0
            self.end_forever()
            self.unsent.clear()
        self.learn(entry.token, sender)

    def leave_to(self, node: str, holder: str, piece_ms: int, wall_ms: int) -> None:
        """We stop in order: promise the group to its owner until that is heard again. Durable before it is told."""
        seen = self.seen.get(node)
        self.promised_to, self.promised_node, self.promised_token = holder, node, self.token_seen
        self.forever_ms = piece_ms
        # Never read: only what an administrator clears after this moment tells (`arbiter clear` numbers by Unix time).
        self.forever_seq = seen.slot.seq if seen is not None else wall_ms

    def heard_holder(self, node: str, holder: str, now: int) -> None:
        """A fresh word of that node: a promise that we left for ever when we stopped becomes an ordinary one."""
        if self.forever_ms and self.promised_node == node:
            # It echoes us, so it knows that we are back and counts no new piece; the last one may still run.
            # Another holder: its guardian started anew, and that old holder runs nothing any more.
            same = self.promised_to == holder
            self.promised_until = now + self.forever_ms * MS * TAKER_PART // 100 if same else 0
            self.end_forever()

    def end_forever(self) -> None:
        """The promise is an ordinary one again; what is answered from here on says so."""
        self.forever_ms = 0
        self.forever_durable = False

    def learn(self, token: int, node: str) -> None:
        """Somebody owns the group, or was promised it, under this token."""
        if token > self.token_seen:
            self.token_seen, self.seen_owner = token, node
        self.token_floor = max(self.token_floor, token)

    def hear_floor(self, token: int) -> None:
        """A number that may have been used. Our own, that a peer repeats after promising it, is none."""
        if not (self.phase is Phase.TAKING and token == self.token):
            self.token_floor = max(self.token_floor, token)

    def next_token(self) -> int:
        """Above every number that may have been used: seen, heard of, promised, or our own."""
        return max(self.token_floor, self.promised_token, self.token) + 1

    def outbid(self) -> bool:
        """While we ask: may somebody have used our token, or a higher one, since we chose it?"""
        return self.phase is Phase.TAKING and self.token_floor >= self.token

    def bid_again(self, ceiling: int, ctx: Context) -> None:
        """Go on with a token above all that is known; what was promised for the old one does not count."""
        if self.next_token() <= ceiling:
            self.token = self.next_token()
            self.promises.clear()
            self.asked.clear()
            self.arbiter_until = 0  # a claim that was won with the old number is none with the new
            ctx.beat = True

    def _yields_to(self, sender: str, entry: GroupEntry) -> bool:
        """To one that has the lease, always; of two that ask at once the later in `nodes` gives way."""
        order = self.group.asked()
        return bool(entry.flags & GroupFlag.OWNER) or order.index(sender) < order.index(self.me)

    # ---------------------------------------------------------------------------------------- what we were promised

    def take(self, token: int, ctx: Context) -> None:
        """Begin to ask for the group. The caller made sure that our own promise has lapsed."""
        assert self.phase is Phase.NONE and not self.promise_stands(ctx.now) and token >= self.next_token()
        self.phase, self.token = Phase.TAKING, token
        self.promises.clear()
        self.asked.clear()
        self.until = self.told = self.acked = self.arbiter_until = self.first_until = 0
        self.taking_since = ctx.now
        self.conflict = ""
        self.released_token = 0
        self.promised_to = ""
        self.read_at = 0  # the slots are read anew before a claim: what a lapsed promise allowed is over only now
        ctx.dirty = ctx.beat = True

    def abandon(self, ctx: Context, why: str) -> None:
        """Give up an attempt that was not granted. A claim that stands on the disk is withdrawn."""
        assert self.phase is Phase.TAKING
        self.phase = Phase.NONE
        self.token_floor = max(self.token_floor, self.token)
        self.conflict = why
        self.until = self.arbiter_until = 0
        self.retry_at = (
            ctx.now + ctx.config.heartbeat.interval_ms * MS + ctx.jitter(ctx.config.heartbeat.dead_after_ms * MS)
        )
        ctx.dirty = True

    def promised(self, node: str, entry: GroupEntry, asked_ns: int) -> None:
        """A fresh promise of (group, token), in the answer to the ask that was sent at asked_ns (read before it)."""
        if self.phase in (Phase.NONE, Phase.LOST) or entry.token != self.token:
            return
        self.promises[node] = max(asked_ns + entry.duration_ms * MS * OWNER_PART // 100, self.promises.get(node, 0))
        self.asked[node] = max(asked_ns, self.asked.get(node, 0))
        if entry.flags & GroupFlag.FOREVER:
            self.left[node] = entry.duration_ms

    def promise_until(self, now: int) -> int:
        """Until when every other node has promised. A word that has no end is counted a piece at a time, for what the
        guardian holds must lapse when we do; so is a group that only this node may run."""
        ends = [
            now + self.left[n] * MS * OWNER_PART // 100 if n in self.left else self.promises.get(n, 0)
            for n in self.others
        ]
        return min(ends, default=now + LONE_MS * MS)

    def unanimous_asked(self, now: int) -> int:
        """When the oldest of the newest answered asks was sent: how recent unanimity is."""
        return min((now if n in self.left else self.asked.get(n, 0) for n in self.others), default=now)

    # ------------------------------------------------------------------------------------------------- the lease

    def alive(self, ctx: Context) -> bool:
        """May this engine act as the owner now?"""
        return (
            self.phase in (Phase.HELD, Phase.RELEASING)
            and self.acked > 0
            and ctx.now < self.acked - ctx.config.heartbeat.kill_ms * MS
        )

    def proof(self, now: int) -> Proof:
        if self.phase not in (Phase.HELD, Phase.RELEASING):
            return Proof.NONE
        promises, arbiter = self.promise_until(now) > now, self.arbiter_until > now
        return (
            Proof.BOTH
            if promises and arbiter
            else Proof.PROMISES
            if promises
            else Proof.ARBITER
            if arbiter
            else Proof.NONE
        )

    def grant(self, ctx: Context) -> HeldLease | None:
        """The expiry to hand to the guardian if it has grown worth while; turns TAKING into HELD."""
        if self.phase in (Phase.NONE, Phase.LOST) or self.outbid():
            return None
        hb = ctx.config.heartbeat
        until = max(self.promise_until(ctx.now), self.arbiter_until)
        if until <= self.until:
            return None
        if self.phase is Phase.TAKING:
            if until - hb.kill_ms * MS - hb.interval_ms * MS // 2 <= ctx.now:
                return None
            self.phase = Phase.HELD
            self.learn(self.token, self.me)
            ctx.dirty = ctx.beat = True
        elif self.acked and not self.alive(ctx):
            return None  # it has run out: what comes now is no renewal
        self.until = until
        if until - self.told < hb.interval_ms * MS // 4 and self.told:
            return None
        self.told = until
        return HeldLease(self.group.name, self.token, until)

    def acknowledged(self, lease: HeldLease, ok: bool, ctx: Context) -> None:
        if lease.token != self.token or self.phase not in (Phase.HELD, Phase.RELEASING):
            return
        if ok:
            ctx.dirty |= not self.alive(ctx)  # it begins to count; a longer end of a live lease changes no decision
            self.acked = max(self.acked, lease.until_ns)
        elif self.acked:
            self.phase = Phase.LOST
        else:  # it never began: the guardian runs nothing under this token
            self.phase = Phase.TAKING
            self.abandon(ctx, "the guardian refused the lease: too little was left of it")

    def adopt(self, held: HeldLease, now: int) -> None:
        """An engine that restarts under a living guardian goes on with the lease that the guardian still holds."""
        self.phase, self.token = Phase.HELD, held.token
        self.until = self.told = self.acked = held.until_ns
        # Until then it rests on something that only the former engine knew; promises or the arbiter must take over.
        self.arbiter_until = held.until_ns
        self.learn(held.token, self.me)
        self.promised_until = 0
        self.promised_to = ""

    def lapsed(self, held: HeldLease) -> None:
        """As adopt(), too late: the guardian is about to end the group, and this engine first. Nothing is promised any more."""
        self.phase, self.token = Phase.LOST, held.token
        self.acked = held.until_ns

    def release(self, ctx: Context) -> None:
        assert self.phase is Phase.HELD
        self.phase = Phase.RELEASING
        ctx.emit(Release(self.group.name, self.token))

    def released(self, ctx: Context) -> None:
        """The guardian confirmed: nothing runs. From here on others may be promised, and the slot says idle."""
        self.phase, self.released_token = Phase.NONE, self.token
        self.until = self.told = self.acked = self.arbiter_until = 0
        self.renew_at = 0  # a record that stands is withdrawn at once: the next owner waits for that
        self.promises.clear()
        self.left.clear()  # a release voids every promise for it, those left for ever too
        ctx.dirty = ctx.beat = True

    # ----------------------------------------------------------------------------------------------- the arbiter

    def standing(self, now: int) -> str:
        """Why the arbiter can't be claimed now: another node's record stands or can't be read; "" when it is free."""
        for node in self.others:
            if node in self.unreadable:
                return f"the slot of {node} can't be used: {self.unreadable[node]}"
            seen = self.seen.get(node)
            if seen is None:
                return f"the slot of {node} was not read yet"
            if seen.standing(now):
                left = (seen.first_ns + seen.slot.duration_ms * MS * TAKER_PART // 100 - now) // MS
                return f"the record of {node} (token {seen.slot.token}) stands for {left} ms more"
        return ""

    def lapse_at(self, now: int) -> int:
        """When the last standing record lapses if it does not change; `now` when none stands."""
        return max(
            (s.first_ns + s.slot.duration_ms * MS * TAKER_PART // 100 for s in self.seen.values() if s.standing(now)),
            default=now,
        )

    def needs_arbiter(self, ctx: Context) -> bool:
        """An answer is overdue by an interval: the owner goes to the arbiter before the promise ends."""
        return self.unanimous_asked(ctx.now) + 2 * ctx.config.heartbeat.interval_ms * MS <= ctx.now

    def write(self, ctx: Context, state: SlotState) -> None:
        """Write own slot, then read all others: one call, at most one under way."""
        arbiter = ctx.config.arbiter
        self.slot_seq += 1
        self.slot_state = state
        self.rewrite = False
        token = self.token if self.phase is not Phase.NONE else max(self.token_floor, self.token)
        self._call(ctx, Slot(self.group.name, self.me, self.slot_seq, state, self.holder, token, arbiter.lease_ms))

    def farewell(self, ctx: Context) -> None:
        """This node stops in order with nobody to leave the group to: its slot says that its holder is gone."""
        self.farewelled = True
        self.slot_seq += 1
        self.slot_state = SlotState.IDLE
        self._call(ctx, Slot(self.group.name, self.me, self.slot_seq, SlotState.IDLE, "0" * 16, self.token_floor, 0))

    def read(self, ctx: Context) -> None:
        self._call(ctx, None)

    def _call(self, ctx: Context, slot: Slot | None) -> None:
        assert self.call is None
        bound = ctx.config.arbiter.io_timeout_ms * MS
        self.call = ArbiterCall(ctx.attempt(), self.group.name, slot, ctx.now + bound)
        self.called_at = ctx.now
        ctx.emit(self.call)

    def arbiter_answered(self, answer: ArbiterAnswer, ctx: Context) -> None:
        """Take in what an arbiter call brought, and count it if it is a claim or renewal that counts."""
        call = self.call
        if call is None or answer.attempt != call.attempt:
            return
        self.call = None
        ctx.dirty = True
        if answer.error:
            self.conflict = answer.error
            self.rewrite |= call.slot is not None
            return
        self.read_at = answer.read_at_ns
        own = answer.slots.get(self.me)
        self.damaged = isinstance(own, str)
        if isinstance(own, Slot):
            former = self.slot_seq < 0 and (own.seq > 0 or self.lived)
            if own.seq > self.slot_seq:
                # Of a former engine: go on above its numbers. (A guardian that starts has ended whatever it stood for.)
                self.slot_seq, self.slot_state = own.seq, own.state
            # That one may have had one write more under way, which lands after ours: its number is not to be used again.
            self.slot_seq = max(self.slot_seq, self.floors.get(self.me, -1)) + former
            self.rewrite |= own.seq < self.slot_seq
            self.hear_floor(own.token)
        for node in self.others:
            self._see(node, answer.slots.get(node, "missing"), answer.read_at_ns)
        asks = call.slot is not None and call.slot.state in (SlotState.CLAIM, SlotState.HELD)
        if call.slot is None or not asks or isinstance(own, str) or own is None:
            return
        if own.seq != call.slot.seq:
            self.conflict = (
                f"own slot reads back sequence {own.seq} instead of {call.slot.seq}: not the disk that was written"
            )
            return
        if call.slot.token != self.token or self.phase in (Phase.NONE, Phase.LOST):
            return  # given up meanwhile
        end = self.called_at + call.slot.duration_ms * MS * OWNER_PART // 100
        if self.phase is Phase.TAKING:
            self._claimed(end, ctx)
        elif self.alive(ctx):  # a renewal that comes after the end is none
            self._renewed(end, ctx)

    def _see(self, node: str, slot: Slot | str, read_at_ns: int) -> None:
        if isinstance(slot, str):
            self.unreadable[node] = slot
            return
        before = self.seen.get(node)
        if before is not None and slot.seq < before.slot.seq:
            self.unreadable[node] = f"sequence {slot.seq} after {before.slot.seq}: an older copy of the disk"
            return
        self.unreadable.pop(node, None)
        if before is None or slot != before.slot:
            self.seen[node] = Seen(slot, read_at_ns)
        self.token_floor = max(self.token_floor, slot.token)
        if slot.state in (SlotState.HELD, SlotState.RESTING):
            self.learn(slot.token, node)

    def _claimed(self, end: int, ctx: Context) -> None:
        # As it was when it was read: a late answer knows nothing of later.
        why = self.conflict = self.standing(self.read_at)
        if not why:
            self.arbiter_until = 0 if self.outbid() else end
            return
        order = self.group.asked()
        rivals = [n for n, s in self.seen.items() if s.standing(self.read_at)]
        later = all(
            self.seen[n].slot.state is SlotState.CLAIM and order.index(n) > order.index(self.me) for n in rivals
        )
        if self.unreadable or not rivals or not later:
            self.abandon(ctx, why)  # the slot is set idle by the next look; the back-off is abandon's

    def _renewed(self, end: int, ctx: Context) -> None:
        for node in self.others:
            if node in self.unreadable:
                self.conflict = f"the slot of {node} can't be used: {self.unreadable[node]}"
                return
            seen = self.seen[node]
            # A claim that is not above our token was made before this lease: stale. One above it may have been
            # written before our own write could be read, and its maker may count on it.
            if seen.standing(self.read_at) and seen.slot.token > self.token:
                self.conflict = f"{node} claims with token {seen.slot.token}, above ours"
                return
        self.conflict = ""
        self.arbiter_until = max(self.arbiter_until, end)
