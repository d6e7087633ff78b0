"""Drives one real Engine by a script and prints what it does: the language of tests/core/transcripts.

The clock, the peers, the lease disk, the guardian, the store and the agents are this file's. Each of these answers well
and at once (the disk after 1 ms) by default; `manual arbiter guardian agents store receipts` makes the script answer in its place, so that an
answer can be late, bad or missing.

    cluster a b [c]  me=a links=lan,cross groups=nfs,db order=nfs:b,a services=web,ip:address,feed:passive arbiter=none
            disk=nfs[,accepted] fence=power:1000ms,network:500ms stop_failure=fence test_s=60
            hooks=before_start!,before_stop:300ms  (! required)
            restart=0 then=stop limit=1 failback=automatic recovery=automatic fail_after=2 former=nfs:a,b
    start   holder=aaaa lease=nfs:5:900ms adopted=web:77 cleaned=web durable=saved|{json}    a new engine, on the same disk
    at 1500ms | +200ms                        let time pass; the engine is woken at each of its deadlines
    wall +3600 | wall -3600                   the wall clock is set, by seconds
    nap 900ms | sleep 900ms                   the same without waking it: one late tick at the end, or none
    peer b  nfs=able:3 silent|back promises=no flags=leaving holder=b2 restart digest=other   b answers and beats by itself
    hear b heartbeat|answer nfs=owner,ask:5 nfs=promise:5:1000ms echo=none|older|-1500ms inc=7 link=lan seq=-1 flags=starting
    replay b                                  the last datagram of b once more
    tell b r/inhibit/nfs [3,"b","words"]      one fact of b's exchange stream
    disk nfs b=held:7:3:3000ms b=unreadable holder=b2      state:token:seq:duration of a slot, as the next read finds it
    arbiter nfs error=... unwritten uuid=...  the answer to the outstanding call, from the disk
    extended ok|refused    released nfs ok|left    sent [-20ms]    persisted ok|failed    result web start ok|failed|... [killed=WHO]
    retire web groups=db keys=k2,k1 stop=100ms for=1         reload-ended CODE for=1          a new configuration
    apply FILE          staged FILE CODE      a file for all nodes; what this node's loader thinks of it
    start ... reloaded=words for=1            the engine that follows it; configure groups=nfs what cluster takes: the new one
    start ... replaced=yes                    the guardian ended the former one, for new code
    start ... unbound=nfs                     the former engine had its lease to the end
    rejected b version text="it speaks..."    a datagram that can't be read, of a peer whose signature was good
    exited web             command failover nfs to=b why=...         report feed up|down   shutdown   power-off
    troubled snmp WORDS    a process of the stack, as the guardian says; no words: it works again
    lease|group|why|suspects nfs    registers    commands    alarms    services          what the engine shows
    fenced b ok|failed [took=900ms]      the answer to the outstanding use of a fence device; a late one never comes
    hooked nfs before_stop ok|failed [stops]      the answer to the outstanding hooks
    fenced-again WORDS     of the last such answer, a second one with other words        fences    what is known of devices
    repeat fenced|result|extended|released|sent|arbiter            the last such event once more: a late duplicate

Printed are the effects, a line each after the milliseconds since the first start; what the engine says in heartbeats only
where it changed; neither the wording of events nor bare answers, counters, probes and checks that went well.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, field, replace
from typing import Any

from hasnmp.config_changes import in_force
from hasnmp.core.context import MS, NEVER
from hasnmp.core.engine import Engine
from hasnmp.core.events import (
    Act,
    Action,
    Adopt,
    Adopted,
    AgentResult,
    ArbiterAnswer,
    ArbiterCall,
    CommandIn,
    Effect,
    Event,
    Exit,
    Extend,
    Extended,
    Fence,
    Fenced,
    Forward,
    GiveUp,
    HeldLease,
    Hook,
    HookEnded,
    Notify,
    Outcome,
    Persist,
    Persisted,
    Received,
    Rejected,
    Release,
    Released,
    Reload,
    ReloadEnded,
    Reply,
    Retire,
    Send,
    Sent,
    ServiceExited,
    Shutdown,
    Stage,
    Staged,
    Started,
    Tick,
    Troubled,
)
from hasnmp.core.lease import Phase
from hasnmp.errors import Code
from hasnmp.model import Failback, Kind, Role, Verb
from hasnmp.settings import (
    Arbiter,
    Check,
    Config,
    FenceLevel,
    Fencing,
    Group,
    Heartbeat,
    NodeSettings,
    OnFailure,
    Service,
)
from hasnmp.settings import Hook as HookSettings
from hasnmp.wire import Datagram, DatagramKind, GroupEntry, GroupFlag, NodeFlag, Slot, SlotState, fingerprint

BOOT = 1_000_000 * MS  # the machine has been up for a while: no clock starts at zero
WALL = 1_700_000_000_000  # Unix time in ms at BOOT
DIGEST = "d" * 16
PARTS = ("arbiter", "guardian", "agents", "store", "receipts", "hooks")
MAX_EVENTS = 20_000  # of one command: more is an engine that never rests


def milliseconds(text: str) -> int:
    """Nanoseconds of a text like 900ms."""
    assert text.endswith("ms"), f"{text!r}: durations end in ms"
    return int(text[:-2]) * MS


def holder_of(short: str) -> str:
    return (short * 16)[:16]


def make_config(words: list[str], options: dict[str, str]) -> Config:
    links = options.get("links", "lan").split(",")
    names = list(words)
    levels = [spec.split(":") for spec in options.get("fence", "").split(",") if spec]
    fence = tuple(FenceLevel("fence_x", cuts, milliseconds(limit) // MS) for cuts, limit in levels)
    nodes = tuple(
        NodeSettings(n, {k: f"192.0.{j}.{i + 1}" for j, k in enumerate(links)}, fence) for i, n in enumerate(names)
    )
    disks = options.get("disk", "").split(",")
    orders = dict(o.split(":") for o in options.get("order", "").split() if o)
    rule = OnFailure(int(options.get("restart", "1")), 900, options.get("then", "failover"))
    groups = []
    for g in options.get("groups", "nfs").split(","):
        services = []
        for spec in options.get("services", "web").split(","):
            name, _, agent = spec.partition(":")
            full = name if g == "nfs" else f"{name}-{g}"
            check = Check(every_ms=1000, timeout_ms=500, fail_after=int(options.get("fail_after", "1")))
            if agent == "passive":
                check = replace(check, type="report", report_within_ms=2000)
            critical = not agent.endswith("-spare")
            kind = agent.removesuffix("-spare") or "exec"
            services.append(Service(full, g, kind, {}, critical, check, 2000, 2000, rule))
        members = tuple(orders[g].split(",")) if g in orders else tuple(names)
        groups.append(
            Group(
                g, members, tuple(services), Failback[options.get("failback", "manual").upper()],
                int(options.get("limit", "3")), 3600, g in disks, "accepted" in disks,
                options.get("stop_failure", "block"),
            )
        )  # fmt: skip
    return Config(
        "bank", nodes,
        Heartbeat(5405, 200, 500, 1000, int(options.get("startup", "1500")), 10000, 100),
        Arbiter(options.get("arbiter", "disk"), "/dev/null", 3000, 500, True), tuple(groups),
        options.get("recovery", "manual") == "automatic", fencing=Fencing(int(options.get("test_s", "0"))), digest=DIGEST,
        hooks=tuple(hook_of(spec) for spec in options.get("hooks", "").split(",") if spec),
    )  # fmt: skip


def hook_of(text: str) -> HookSettings:
    name, _, limit = text.partition(":")
    return HookSettings(name.rstrip("!"), ("/bin/hook",), milliseconds(limit or "500ms") // MS, name.endswith("!"))


def entry_of(group: str, text: str) -> GroupEntry:
    """A group entry of a text like owner,ask:5:1000ms: flags, token, duration."""
    flags, _, rest = text.partition(":")
    token, _, duration = rest.partition(":")
    total = GroupFlag(0)
    for word in flags.split(","):
        if word not in ("", "-", "unclean"):
            total |= GroupFlag[word.upper()]
    # Whoever neither has it nor asks for it is clean, unless it says otherwise: so scripts and transcripts name only that.
    busy = GroupFlag.OWNER | GroupFlag.ASK | GroupFlag.PROMISE
    if not total & busy and "unclean" not in flags:
        total |= GroupFlag.CLEAN
    return GroupEntry(group, total, int(token or 0), milliseconds(duration) // MS if duration else 0)


def entry_text(entry: GroupEntry, answer: bool = False) -> str:
    busy = GroupFlag.OWNER | GroupFlag.ASK | GroupFlag.PROMISE
    shown = [str(f.name).lower() for f in GroupFlag if entry.flags & f and f is not GroupFlag.CLEAN]
    if answer and not entry.flags & GroupFlag.PROMISE:
        return f"{entry.group}=above:{entry.token}"
    if not entry.flags & (busy | GroupFlag.CLEAN):
        shown.append("unclean")
    words = ",".join(shown) or "-"
    return f"{entry.group}={words}:{entry.token}" + (f":{entry.duration_ms}ms" if entry.duration_ms else "")


class Missing(Exception):
    """The script answers what the engine has not asked."""


@dataclass
class Other:
    """A peer of the engine, as far as the engine can tell."""

    name: str
    incarnation: int
    holder: str
    seq: int = 0
    talks: bool = False
    promises: bool = True
    says: dict[str, GroupEntry] = field(default_factory=dict)
    flags: NodeFlag = NodeFlag(0)
    digest: str = DIGEST
    beat_at: int = 0
    position: int = 0  # of its own stream
    received: int = 0  # of the engine's
    sent_to: list[tuple[int, int]] = field(default_factory=list)  # (when, seq) of what the engine sent to it
    incarnation_heard: int = 0  # the engine's
    last: tuple[tuple[str, ...], Datagram] | None = None
    restarts: int = 0


class Driver:
    def __init__(self) -> None:
        self.config: Config | None = None
        self.engine: Engine | None = None
        self.me = "a"
        self.now = BOOT
        self.wall_set_ms = 0
        self.others: dict[str, Other] = {}
        self.disk: dict[str, dict[str, Slot | str]] = {}
        self.manual: set[str] = set()
        self.lines: list[str] = []
        self.queue: list[Event] = []
        self.calls: dict[str, ArbiterCall] = {}
        self.reads: list[tuple[int, ArbiterCall]] = []  # calls that the disk answers by itself, and when
        self.acts: dict[str, Act] = {}
        self.pids = 100
        self.extends: list[Extend] = []
        self.releases: dict[str, Release] = {}
        self.fences: dict[str, Fence] = {}
        self.hooks: dict[tuple[str, str], Hook] = {}
        self.receipts: list[int] = []
        self.persists: list[Persist] = []
        self.saved: dict[str, Any] | None = None
        self.last: dict[str, Event] = {}
        self.beats: dict[str, str] = {}
        self.answers: dict[str, str] = {}
        self.folding = False  # while time passes, an answer like the one before is not printed again
        self.replies = 0
        self.staged: dict[str, str] = {}  # file -> what it is called
        self.effects: list[Effect] = []  # everything, for tests that look themselves
        self.starts = 0
        self.uuid = "u1"

    # ------------------------------------------------------------------------------------------------- the script

    def run(self, block: str) -> str:
        """Carry out the lines of one block; returns what was printed."""
        self.lines = []
        for line in block.splitlines():
            line = line.strip()
            if line and not line.startswith("#"):
                try:
                    self.command(line)
                except Missing as missing:
                    self.say(f"! {line}: {missing}")
        return "\n".join(self.lines) or "(nothing)"

    def command(self, line: str) -> None:
        words, options = [], {}
        for word in line.split(" ") if line.startswith(("tell", "start")) else shlex.split(line):
            key, equals, value = word.partition("=")
            if equals and key.isidentifier() and not line.startswith("tell"):
                options[key] = value
            elif word:
                words.append(word)
        name = words.pop(0)
        if name.startswith("+"):
            self.advance(self.now + milliseconds(name[1:]))
            return
        method = getattr(self, "do_" + name.replace("-", "_"), None)
        assert method is not None, f"no such command: {line}"
        method(words, options)

    def say(self, text: str) -> None:
        self.lines.append(f"{(self.now - BOOT) // MS:6} {text}")

    # ------------------------------------------------------------------------------------------------- the engine

    def step(self, event: Event) -> None:
        """One event, then whatever the parts that answer by themselves say to its effects."""
        self.queue.append(event)
        for _ in range(MAX_EVENTS):
            if not self.queue:
                return
            assert self.engine is not None
            taken = self.queue.pop(0)
            if isinstance(taken, Received) and (other := self.others.get(taken.datagram.sender)) is not None:
                other.position = max(other.position, taken.datagram.stream)  # of a test that makes its own datagrams
            self.taken(taken)
            for effect in self.engine.step(taken, self.now):
                self.effects.append(effect)
                self.effect(effect)
        raise AssertionError("the engine never comes to rest")

    def taken(self, event: Event) -> None:
        """An event is about to be handed to the engine: for tests that look themselves."""

    def effect(self, effect: Effect) -> None:
        match effect:
            case Send():
                self.sent(effect)
            case Extend():
                until = ", ".join(f"{h.group}:{h.token} until {(h.until_ns - BOOT) // MS}" for h in effect.leases)
                if "guardian" in self.manual:
                    self.say(f"extend {until}")
                    self.extends.append(effect)
                else:
                    self.queue.append(Extended(effect.leases))
            case Release():
                self.say(f"release {effect.group}:{effect.token}")
                if "guardian" in self.manual:
                    self.releases[effect.group] = effect
                else:
                    self.queue.append(Released(effect.group, effect.token, True))
            case ArbiterCall():
                self.called(effect)
            case Act():
                self.acted(effect)
            case Persist():
                if "store" in self.manual:
                    forever = effect.document["forever"]
                    self.say(f"persist {effect.version}" + (f" forever={sorted(forever)}" if forever else ""))
                    self.persists.append(effect)
                else:
                    self.saved = json.loads(json.dumps(effect.document))
                    self.queue.append(Persisted(effect.version))
            case Hook():
                to = f" to={effect.to}" if effect.to else ""
                self.say(f"hook {effect.group} {effect.on}{to}" + (f" ({effect.reason})" if effect.reason else ""))
                if "hooks" in self.manual:
                    self.hooks[effect.group, effect.on] = effect
                else:
                    self.queue.append(HookEnded(effect.attempt, effect.group, effect.on))
            case Fence():
                self.say(
                    f"fence {effect.node} level {effect.level + 1} {effect.action.value} within {effect.timeout_ms}ms"
                )
                self.fences[effect.node] = effect
            case Notify():
                self.say("notify " + self.notify_text(effect))
            case Reply():
                row = effect.command
                self.say(f"reply {row.state.name.lower()}" + (f" {Code(row.code).name}" if row.code else ""))
            case Exit():
                how = " by force" if effect.force else " retired" if effect.retired else ""
                self.say("exit" + how)
            case Reload():
                self.say(f"reload {effect.command}")
            case Stage():
                self.staged[effect.document] = effect.ident
                self.say(f"stage {effect.document}")
            case Adopt():
                self.say(f"adopt for={effect.command}")
            case Forward():
                self.say(f"forward for={effect.command}")
            case GiveUp():
                self.say(f"give-up: {effect.text}")

    def notify_text(self, effect: Notify) -> str:
        e = effect.event
        where = [x for x in (e.group, e.service, e.peer, e.link) if x]
        if e.kind is Kind.ROLE_CHANGE:
            where.append(Role(e.state).name.lower())
        why = f" ({e.reason.name.lower()})" if e.reason.value > 1 else ""
        mark = " RAISED" if effect.raised else " cleared" if effect.cleared else ""
        return " ".join([e.kind.value, *where]) + why + mark

    def sent(self, effect: Send) -> None:
        d = effect.datagram
        peer = self.others[d.receiver]
        if d.incarnation != peer.incarnation_heard:
            peer.incarnation_heard, peer.received, peer.position = d.incarnation, 0, 0
        peer.sent_to.append((self.now, d.seq))
        if d.echo_incarnation == peer.incarnation:
            assert d.ack <= peer.position, (
                f"{d.ack} acknowledged of this incarnation of {peer.name}, which has sent {peer.position}"
            )
        said = " ".join(entry_text(e, d.kind is DatagramKind.ANSWER) for e in d.groups)
        if d.kind is DatagramKind.HEARTBEAT:
            flags = ",".join(str(f.name).lower() for f in NodeFlag if d.flags & f)
            text = f"{flags} {said}".strip()
            if self.beats.get(peer.name) != text:
                self.beats[peer.name] = text
                self.say(f"beat {peer.name}: {text}")
        elif d.kind is DatagramKind.ANSWER and d.groups:
            if not (self.folding and self.answers.get(peer.name) == said):
                self.say(f"answer {peer.name}: {said}")
            self.answers[peer.name] = said
        elif d.stream and d.stream == peer.received + 1:
            for key, value in json.loads(d.payload):
                if key[0] not in "gsnl" or (key[0] == "l" and set(value["suspects"]) - {peer.name}):
                    self.say(f"tell {peer.name}: {key} {json.dumps(value)}")
        if effect.receipt:
            if "receipts" in self.manual:
                self.receipts.append(d.seq)
            else:
                self.queue.append(Sent(d.seq, self.now))
        if peer.talks:
            self.peer_hears(peer, d)

    def called(self, call: ArbiterCall) -> None:
        slot = call.slot
        if slot is not None:
            self.say(
                f"arbiter {call.group} write {slot.state.name.lower()}:{slot.token}:{slot.seq}:{slot.duration_ms}ms"
            )
        elif "arbiter" in self.manual:
            self.say(f"arbiter {call.group} read")
        if "arbiter" in self.manual:
            self.calls[call.group] = call
        else:
            self.reads.append((self.now + MS, call))

    def disk_answer(self, call: ArbiterCall, *, write: bool = True) -> ArbiterAnswer:
        if call.slot is not None and write:
            self.disk[call.group][self.me] = call.slot
        return ArbiterAnswer(call.attempt, call.group, self.now, dict(self.disk[call.group]), "", self.uuid, 1)

    def acted(self, act: Act) -> None:
        if act.action is not Action.CHECK or "agents" in self.manual:
            self.say(f"{act.action.value} {act.service}" + ("" if act.owned else " (unowned)"))
        if "agents" in self.manual:
            self.acts[act.service] = act
        else:
            self.queue.append(self.outcome(act, Outcome.OK))

    def outcome(self, act: Act, outcome: Outcome, message: str = "") -> AgentResult:
        self.pids += act.action is Action.START
        return AgentResult(
            act.attempt, act.service, outcome, message, 1000, self.pids if act.action is Action.START else 0
        )

    # ------------------------------------------------------------------------------------------------ the peers

    def peer_hears(self, peer: Other, d: Datagram) -> None:
        if d.kind is DatagramKind.EXCHANGE and d.stream:
            peer.received = max(peer.received, d.stream)
            self.put(peer, DatagramKind.EXCHANGE, ())
        elif d.kind is DatagramKind.HEARTBEAT:
            asked = [e for e in d.groups if e.flags & GroupFlag.ASK]
            owned = [g for g, e in peer.says.items() if e.flags & (GroupFlag.OWNER | GroupFlag.ASK)]
            promises = tuple(
                GroupEntry(e.group, GroupFlag.PROMISE, e.token, 1000)
                for e in asked if peer.promises and e.group not in owned
            )  # fmt: skip
            self.put(peer, DatagramKind.ANSWER, promises)
            if self.now >= peer.beat_at:
                peer.beat_at = self.now + 200 * MS
                self.put(peer, DatagramKind.HEARTBEAT, self.said(peer))

    def said(self, peer: Other) -> tuple[GroupEntry, ...]:
        assert self.config is not None
        return tuple(peer.says.get(g.name, GroupEntry(g.name, GroupFlag.CLEAN, 0)) for g in self.config.groups)

    def put(
        self, peer: Other, kind: DatagramKind, groups: tuple[GroupEntry, ...], echo: int | None = None, seq: int = 0,
        links: tuple[str, ...] = (), payload: bytes = b"", incarnation: int = 0, flags: NodeFlag | None = None,
    ) -> None:  # fmt: skip
        """Queue one datagram of a peer, over every link unless told otherwise."""
        assert self.config is not None and self.engine is not None
        if not seq:
            peer.seq += 1
            seq = peer.seq
        if payload:
            peer.position += 1
        newest = peer.sent_to[-1][1] if peer.sent_to else 0
        d = Datagram(
            kind, peer.name, self.me, incarnation or peer.incarnation, seq, self.engine.state.incarnation,
            newest if echo is None else echo, peer.holder, peer.digest, peer.flags if flags is None else flags, groups,
            peer.position if payload else 0, peer.received, payload,
        )  # fmt: skip
        ways = links or tuple(self.config.node(peer.name).links)
        peer.last = (ways, d)
        self.queue.extend(Received(way, d) for way in ways)

    # ------------------------------------------------------------------------------------------------ time

    def advance(self, until: int) -> None:
        assert self.engine is not None
        self.folding = True
        for _ in range(MAX_EVENTS):
            answer_at = self.reads[0][0] if self.reads else NEVER
            at = min(self.engine.next_deadline_ns(), answer_at)
            if at > until:
                self.folding = False
                self.now = max(self.now, until)
                return
            self.now = max(self.now, at)
            self.step(self.disk_answer(self.reads.pop(0)[1]) if answer_at == at else Tick(self.wall()))
        raise AssertionError(
            f"next_deadline_ns() stays at {(self.engine.next_deadline_ns() - BOOT) / MS} ms: a busy loop"
        )

    def wall(self) -> int:
        return WALL + self.wall_set_ms + (self.now - BOOT) // MS

    def do_wall(self, words: list[str], _: dict[str, str]) -> None:
        self.wall_set_ms += int(words[0]) * 1000

    def do_at(self, words: list[str], _: dict[str, str]) -> None:
        self.advance(BOOT + milliseconds(words[0]))

    def do_sleep(self, words: list[str], _: dict[str, str]) -> None:
        """The engine is not scheduled for so long, and whatever follows reaches it before any tick does."""
        self.now += milliseconds(words[0])

    def do_nap(self, words: list[str], _: dict[str, str]) -> None:
        """The engine is not scheduled for so long: one late tick at the end."""
        self.now += milliseconds(words[0])
        self.step(Tick(self.wall()))

    # ------------------------------------------------------------------------------------------------ commands

    def do_cluster(self, words: list[str], options: dict[str, str]) -> None:
        # former="nfs:a,b": these were the group's nodes, and not every node is known to have left that.
        former = dict(o.split(":") for o in options.get("former", "").split())
        self.config, _ = in_force(make_config(words, options), {g: (tuple(n.split(",")),) for g, n in former.items()})
        self.me = options.get("me", "a")
        self.others = {n: Other(n, 1000 * (i + 1), holder_of(n)) for i, n in enumerate(words) if n != self.me}
        self.disk = {
            g.name: {n: Slot(g.name, n, 0, SlotState.IDLE, "0" * 16, 0, 0) for n in g.asked()}
            for g in self.config.groups
        }

    def do_manual(self, words: list[str], _: dict[str, str]) -> None:
        assert set(words) <= set(PARTS)
        self.manual |= set(words)

    def do_auto(self, words: list[str], _: dict[str, str]) -> None:
        assert set(words) <= set(PARTS)
        self.manual -= set(words)

    def do_start(self, words: list[str], options: dict[str, str]) -> None:
        assert self.config is not None and not words
        self.engine = Engine(self.config, self.me, "1")
        self.queue, self.calls, self.acts, self.extends, self.receipts, self.beats = [], {}, {}, [], [], {}
        self.reads, self.releases, self.persists, self.answers = [], {}, [], {}
        self.starts += 1
        durable: Any = options.get("durable")
        if durable == "saved":
            assert self.saved is not None
            durable = self.saved
        elif durable is not None:
            durable = json.loads(durable)
        leases = [x.split(":") for x in options.get("lease", "").split(",") if x]
        adopted = [x.split(":") for x in options.get("adopted", "").split(",") if x]
        self.step(
            Started(
                self.starts, holder_of(options.get("holder", "a")), "boot", 0x123456789ABCDEF * self.starts, self.wall(),
                tuple(HeldLease(g, int(t), self.now + milliseconds(left)) for g, t, left in leases),
                tuple(Adopted(s, int(pid), self.now) for s, pid in adopted),
                tuple(x for x in options.get("cleaned", "").split(",") if x), durable=durable,
                watchdog_ms=milliseconds(options.get("watchdog", "0ms")) // MS,
                unclean=tuple(x for x in options.get("unclean", "").split(",") if x),
                unbound=tuple(x for x in options.get("unbound", "").split(",") if x),
                reloaded=options.get("reloaded", ""), reload_command=int(options.get("for", "0")),
                replaced="replaced" in options,
            )
        )  # fmt: skip

    def do_peer(self, words: list[str], options: dict[str, str]) -> None:
        peer = self.others[words[0]]
        peer.talks = "silent" not in words
        if "restart" in words:
            peer.restarts += 1
            peer.incarnation += 1
            peer.seq = peer.position = peer.received = 0
        peer.holder = holder_of(options.pop("holder")) if "holder" in options else peer.holder
        peer.digest = options.pop("digest")[0] * 16 if "digest" in options else peer.digest
        peer.promises = options.pop("promises", "yes" if peer.promises else "no") == "yes"
        if "flags" in options:
            peer.flags = self.node_flags(options.pop("flags"))
        for group, text in options.items():
            peer.says[group] = entry_of(group, text)
        if peer.talks and self.engine is not None:
            peer.beat_at = self.now + 200 * MS
            self.put(peer, DatagramKind.HEARTBEAT, self.said(peer))
            self.step(self.queue.pop(0))

    def node_flags(self, text: str) -> NodeFlag:
        flags = NodeFlag(0)
        for word in text.split(","):
            if word and word != "-":
                flags |= NodeFlag[word.upper()]
        return flags

    def do_hear(self, words: list[str], options: dict[str, str]) -> None:
        peer, kind = self.others[words[0]], DatagramKind[words[1].upper()]
        echo: int | None = None
        how = options.pop("echo", "")
        if how == "none":
            echo = 0
        elif how:
            limit = self.now + milliseconds(how)  # "-1500ms"
            echo = max(seq for at, seq in peer.sent_to if at <= limit)
        link = options.pop("link", "")
        seq = peer.seq + int(options.pop("seq")) if "seq" in options else 0
        incarnation = int(options.pop("inc", "0"))
        peer.holder = holder_of(options.pop("holder")) if "holder" in options else peer.holder
        peer.digest = options.pop("digest")[0] * 16 if "digest" in options else peer.digest
        flags = self.node_flags(options.pop("flags")) if "flags" in options else None
        groups = tuple(entry_of(g, text) for g, text in options.items())
        self.put(peer, kind, groups, echo, seq, (link,) if link else (), b"", incarnation, flags)
        self.step(self.queue.pop(0))

    def do_replay(self, words: list[str], _: dict[str, str]) -> None:
        last = self.others[words[0]].last
        if last is None:
            raise Missing("it has said nothing yet")
        self.queue.extend(Received(way, last[1]) for way in last[0])
        self.step(self.queue.pop(0))

    def do_tell(self, words: list[str], _: dict[str, str]) -> None:
        peer = self.others[words[0]]
        value = json.loads(" ".join(words[2:]))
        self.put(peer, DatagramKind.EXCHANGE, (), payload=json.dumps([[words[1], value]]).encode())
        self.step(self.queue.pop(0))

    def do_disk(self, words: list[str], options: dict[str, str]) -> None:
        holder = options.pop("holder", "")
        self.uuid = options.pop("uuid", self.uuid)
        for node, text in options.items():
            parts = text.split(":")
            slot: Slot | str = text
            if len(parts) == 4:
                slot = Slot(
                    words[0], node, int(parts[2]), SlotState[parts[0].upper()], holder_of(holder or node), int(parts[1]),
                    milliseconds(parts[3]) // MS,
                )  # fmt: skip
            self.disk[words[0]][node] = slot

    def event(self, kind: str, event: Event) -> None:
        self.last[kind] = event
        self.step(event)

    def do_repeat(self, words: list[str], _: dict[str, str]) -> None:
        self.step(self.last[words[0]])

    def do_arbiter(self, words: list[str], options: dict[str, str]) -> None:
        if words[0] not in self.calls:
            raise Missing("no call is under way")
        call = self.calls.pop(words[0])
        answer = self.disk_answer(call, write="unwritten" not in words and "error" not in options)
        if "error" in options:
            answer = ArbiterAnswer(call.attempt, call.group, self.now, {}, options["error"])
        if "uuid" in options:
            answer = replace(answer, uuid=options["uuid"])
        if "read" in options:  # the clock after the read, where the answer came late
            answer = replace(answer, read_at_ns=self.now + milliseconds(options["read"]))
        self.event("arbiter", answer)

    def do_extended(self, words: list[str], _: dict[str, str]) -> None:
        if not self.extends:
            raise Missing("nothing was handed to the guardian")
        self.event("extended", Extended(self.extends.pop(0).leases, words[0] == "ok"))

    def do_released(self, words: list[str], _: dict[str, str]) -> None:
        if words[0] not in self.releases:
            raise Missing("no release is under way")
        release = self.releases.pop(words[0])
        self.event("released", Released(release.group, release.token, words[1] == "ok", words[1]))

    def do_sent(self, words: list[str], _: dict[str, str]) -> None:
        if not self.receipts:
            raise Missing("no receipt is asked for")
        at = self.now + (milliseconds(words[0]) if words else 0)
        self.event("sent", Sent(self.receipts.pop(0), at))

    def do_fenced(self, words: list[str], options: dict[str, str]) -> None:
        if words[0] not in self.fences:
            raise Missing("it is not being fenced")
        fence = self.fences.pop(words[0])
        took = milliseconds(options.get("took", "100ms")) // MS * 1000
        self.event(
            "fenced", Fenced(fence.attempt, words[0], fence.level, fence.action, words[1] == "ok", words[1], took)
        )

    def do_hooked(self, words: list[str], options: dict[str, str]) -> None:
        hook = self.hooks.get((words[0], words[1]))
        if hook is None:
            raise Missing("it does not run")
        failures = () if words[2] == "ok" else ("/bin/hook: exit status 1",)
        self.event("hooked", HookEnded(hook.attempt, hook.group, hook.on, failures, "stops" in words))

    def do_fenced_again(self, words: list[str], _: dict[str, str]) -> None:
        before = self.last["fenced"]
        assert isinstance(before, Fenced)
        self.event("fenced", replace(before, text=" ".join(words)))

    def do_fences(self, _: list[str], __: dict[str, str]) -> None:
        assert self.engine is not None
        for (node, level), device in sorted(self.engine.state.fencing.devices.items()):
            self.say(f"fence level {level + 1} of {node}: {device.result or 'nothing known'}")

    def do_persisted(self, words: list[str], _: dict[str, str]) -> None:
        if not self.persists:
            raise Missing("nothing is being written")
        done = self.persists.pop(0)
        ok = words[0] == "ok"
        if ok:
            self.saved = json.loads(json.dumps(done.document))
        self.step(Persisted(done.version, ok, "" if ok else "No space left on device"))

    def do_result(self, words: list[str], options: dict[str, str]) -> None:
        if words[0] not in self.acts:
            raise Missing("no action is under way")
        if self.acts[words[0]].action.value != words[1]:
            raise Missing(f"{self.acts[words[0]].action.value} is under way")
        act = self.acts.pop(words[0])
        answer = self.outcome(act, Outcome[words[2].upper()], "why")
        self.event("result", replace(answer, killed=options.get("killed", "")))

    def do_exited(self, words: list[str], _: dict[str, str]) -> None:
        assert self.engine is not None
        pid = self.engine.state.board.services[words[0]].pid
        self.event("exited", ServiceExited(words[0], pid, "exit status 1"))

    def do_rejected(self, words: list[str], options: dict[str, str]) -> None:
        self.event("rejected", Rejected("lan", words[1], peer=words[0], text=options.get("text", "")))

    def do_command(self, words: list[str], options: dict[str, str]) -> None:
        self.replies += 1
        verb = Verb[words[0].replace("-", "_").upper()]
        target = words[1] if len(words) > 1 else ""
        self.step(
            CommandIn(self.replies, verb, target, "me", options.get("to", ""), options.get("why", ""), "", self.wall())
        )

    def do_report(self, words: list[str], _: dict[str, str]) -> None:
        self.replies += 1
        self.step(CommandIn(self.replies, Verb.REPORT, words[0], "me", up=words[1] == "up", message="said so"))

    def do_retire(self, words: list[str], options: dict[str, str]) -> None:
        groups, keys = (tuple(x for x in options.get(name, "").split(",") if x) for name in ("groups", "keys"))
        prints = tuple(fingerprint(key.encode()) for key in keys)
        stop_ms = milliseconds(options.get("stop", "100ms")) // MS
        self.step(Retire(int(options.get("for", "0")), tuple(words), groups, prints, stop_ms, "words"))

    def do_apply(self, words: list[str], _: dict[str, str]) -> None:
        self.replies += 1
        self.step(CommandIn(self.replies, Verb.APPLY, "", "me", document=words[0]))

    def do_staged(self, words: list[str], _: dict[str, str]) -> None:
        self.step(Staged(self.staged[words[0]], int(Code[words[1]]), "some fault" if words[1] != "DONE" else "words"))

    def do_troubled(self, words: list[str], _: dict[str, str]) -> None:
        self.step(Troubled(words[0], " ".join(words[1:])))

    def do_reload_ended(self, words: list[str], options: dict[str, str]) -> None:
        self.step(ReloadEnded(int(options.get("for", "0")), int(Code[words[0]]), "hasnmp.yaml:7: some fault"))

    def do_configure(self, words: list[str], options: dict[str, str]) -> None:
        """Another configuration of the same nodes, for the next engine."""
        self.config = make_config(words, options)
        for group in self.config.groups:
            empty = {n: Slot(group.name, n, 0, SlotState.IDLE, "0" * 16, 0, 0) for n in group.nodes}
            self.disk.setdefault(group.name, empty)

    def do_shutdown(self, _: list[str], __: dict[str, str]) -> None:
        self.step(Shutdown())

    # ------------------------------------------------------------------------------------------------ looks

    def do_lease(self, words: list[str], _: dict[str, str]) -> None:
        assert self.engine is not None
        lease = self.engine.state.leases[words[0]]
        text = f"lease {words[0]}: {lease.phase.value}"
        if lease.phase is not Phase.NONE:
            alive = "alive" if lease.alive(replace(self.engine.ctx, now=self.now)) else "not alive"
            text += f":{lease.token} until {max(0, lease.acked - BOOT) // MS}, {alive}, by {lease.proof(self.now).name.lower()}"
        elif lease.promise_stands(self.now):
            until = (
                "for ever" if lease.forever_ms else "unsent" if lease.unsent else (lease.promised_until - BOOT) // MS
            )
            text += f", promised {lease.promised_token} to {lease.promised_node or 'nobody known'} until {until}"
        self.say(text + (f"; conflict: {lease.conflict}" if lease.conflict else ""))

    def do_group(self, words: list[str], _: dict[str, str]) -> None:
        assert self.engine is not None
        self.engine.ctx.now = self.now
        state, facts = self.engine.state, self.engine.state.board.groups[words[0]]
        self.say(
            f"group {words[0]}: {state.group_state(words[0]).name.lower()} owner={state.owner(words[0]) or '-'} "
            f"reason={facts.reason.name.lower()} failovers={facts.failovers} moves={len(facts.moves)}"
        )

    def do_why(self, words: list[str], _: dict[str, str]) -> None:
        assert self.engine is not None
        for line in self.engine.why(words[0], self.now):
            self.say("| " + line)

    def do_registers(self, _: list[str], __: dict[str, str]) -> None:
        assert self.engine is not None
        for key, (version, node, text) in sorted(self.engine.state.board.registers.values.items()):
            self.say(f"{key} v{version} by {node}: {'on' if text else 'off'}")

    def do_commands(self, _: list[str], __: dict[str, str]) -> None:
        assert self.engine is not None
        for row in self.engine.state.journal.commands.values():
            code = f" {Code(row.code).name}" if row.code else ""
            self.say(f"command {row.id} {row.verb.name.lower()} {row.target}: {row.state.name.lower()}{code}")

    def do_alarms(self, _: list[str], __: dict[str, str]) -> None:
        assert self.engine is not None
        self.say("alarms: " + (" ".join(sorted(self.engine.state.journal.alarms)) or "none"))

    def do_suspects(self, words: list[str], _: dict[str, str]) -> None:
        assert self.engine is not None
        found = self.engine.state.fencing.suspects.get(words[0], {})
        text = " ".join(f"{n}/{s.holder[:2].rstrip()}:{s.token}" for n, s in sorted(found.items()))
        self.say(f"suspects {words[0]}: {text or 'none'}")

    def do_services(self, _: list[str], __: dict[str, str]) -> None:
        assert self.engine is not None
        for name, facts in self.engine.state.board.services.items():
            self.say(
                f"service {name}: {facts.state.name.lower()} failures={facts.failures} restarts={len(facts.restarts)}"
            )


def finished(driver: Driver) -> bool:
    """Has the engine exited?"""
    return driver.engine is not None and driver.engine.next_deadline_ns() == NEVER
