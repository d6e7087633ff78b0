"""`hasnmp apply`: one file for all nodes, judged by each before any goes by it (design rule 9).

    ask      the file goes over every stream, in parts; each node's loader judges it, with that node's own secrets
    staged   each node tells what it thinks; a fault on one node, or a node that is not heard, ends it: nothing has changed
    commit   a register: who has the file staged writes it in place of its configuration and goes through a reload. The
             node that was asked goes last, when the others have been told

What may change like this is safe in any mixture of old and new (config_changes.py), so a node that misses the moment costs
nothing but an alarm: its digest differs, nobody acquires, owners keep what they have.

Another set of nodes for a group is not safe in a mixture by itself: of two that may run it, each must ask the other. So each
node keeps, durably, every set by which it has gone since all were known to agree, and a lease respects them all
(config_changes.in_force): old and new nodes are asked, and who is in all of the sets may take it. That is "halfway". It does
not matter how the file came: by an apply, or by hand before a start.

A node forgets the former sets when it hears every node to have its file, long enough that what was leased before is over or
proven anew, and none of those that the file does not have for the group to run it. Nobody is by a former set alone then, nor can be later:
whoever takes another file keeps this one's sets. A node that is cut off stays halfway, which is safe beside all that the
others can reach.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

from hasnmp.core.context import MS
from hasnmp.core.events import Adopt, Forward, Stage, Staged
from hasnmp.core.lease import TAKER_PART
from hasnmp.core.state import State
from hasnmp.errors import Code, Refused
from hasnmp.model import CommandRow, CommandState
from hasnmp.wire import GroupFlag, NodeFlag

APPLY = "apply"  # the register: apply/ = the file to go by
PART = 700  # characters of a part: with its key and its frame it fits into one exchange message
PARTS = 201  # at most: 100 KiB of a compressed file
STAGE_MS = 40_000  # to send the file and to have it judged everywhere; a loader has 30 s
TELL_MS = 2000  # how long the commit may take to reach the others
AGAIN_MS = 5000  # until the second step is tried again, if it could not be made
HALFWAY = "halfway: old and new nodes are asked for every lease, until all nodes are there and have come so far"


def ident_of(whole: str) -> str:
    """What a file is called between nodes. whole: "INCARNATION.COMMAND:DOCUMENT"."""
    return hashlib.sha256(whole.encode()).hexdigest()[:16]


@dataclass(slots=True)
class Mine:
    """An apply that was asked for here."""

    ident: str
    command: int
    waiting: dict[str, int]  # nodes that have not judged it yet -> their incarnation when they were asked
    until_ns: int
    committed: bool = False


@dataclass(slots=True)
class Apply:
    state: State
    mine: Mine | None = None
    staged_here: str = ""  # the file that this node's guardian holds, judged good
    asker: dict[str, str] = field(default_factory=dict)  # file -> the node that sent it
    coming: dict[str, tuple[str, dict[int, str]]] = field(
        default_factory=dict
    )  # node -> its file's name, and parts so far
    command: int = 0  # that brought this engine halfway
    halfway_ns: int = 0  # since when every node is heard to be halfway
    forward_at: int = 0  # not before: the guardian is at it

    def ask(self, row: CommandRow, document: str) -> CommandRow:
        """Verb.APPLY. document: the compressed file, as text. Raises Refused."""
        state = self.state
        if not document or len(document) > PART * (PARTS - 1):
            raise Refused(
                Code.USAGE, f"apply refused: the file is empty, or its compressed text longer than {PART * (PARTS - 1)}"
            )
        if state.leaving or self.mine is not None:
            why = f"{state.me} is stopping" if state.leaving else "another one is under way"
            raise Refused(Code.BUSY, f"apply refused: {why}; see: hasnmp commands")
        away = [p for p in state.peers.values() if not p.heard() or p.flags & NodeFlag.LEAVING]
        if away:
            last = f"last heard {state.seconds(away[0].heard_ns)} ago" if away[0].heard_ns else "never heard"
            raise Refused(
                Code.PEER_LOST,
                f"apply refused: {', '.join(p.name for p in away)} is not there ({last}), and every node must take the file; "
                "start it, then apply again",
            )
        # A name of its own for each apply: the same file once more must not be gone by before all have judged it again.
        whole = f"{state.incarnation:x}.{row.id}:{document}"
        ident = ident_of(whole)
        parts = [whole[i : i + PART] for i in range(0, len(whole), PART)]
        for stream in state.streams.values():
            for number, part in enumerate(parts):
                stream.put(f"x/{ident}/{number}", [len(parts), part])
        self.mine = Mine(
            ident,
            row.id,
            {state.me: 0, **{p.name: p.incarnation for p in state.peers.values()}},
            state.ctx.now + STAGE_MS * MS,
        )
        state.ctx.emit(Stage(ident, document))
        state.ctx.wake(self.mine.until_ns)
        text = f"being judged on {', '.join(n.name for n in state.config.nodes)}"
        return state.journal.update(state.ctx, row, CommandState.RUNNING, Code.DONE, text)

    def told(self, kind: str, name: str, value: Any, sender: str) -> None:
        """A peer's word. Raises TypeError, ValueError, KeyError or IndexError: of a form that this version does not know."""
        if kind == "x":
            ident, _, number = name.partition("/")
            count, part = int(value[0]), str(value[1])
            before, parts = self.coming.get(sender, ("", {}))
            if ident != before:
                parts = {}
            self.coming[sender] = ident, parts
            if 0 <= int(number) < count <= PARTS:
                parts[int(number)] = part[:PART]
            whole = "".join(parts[i] for i in range(count)) if len(parts) == count else ""
            if whole and ident_of(whole) == ident:
                del self.coming[sender]
                self.asker = {i: who for i, who in self.asker.items() if who != sender} | {ident: sender}
                if self.mine is not None:
                    busy = f"an apply that was asked for there, on {self.state.me}, is under way"
                    self.state.streams[sender].put(f"y/{ident}", [int(Code.BUSY), busy])
                    return
                self.state.ctx.emit(Stage(ident, whole.partition(":")[2]))
        elif kind == "y":
            self._judged(sender, name, Code(value[0]), str(value[1]))

    def staged(self, event: Staged) -> None:
        """This node's loader has judged it."""
        if event.code == Code.DONE:
            self.staged_here = event.ident
        if asker := self.asker.pop(event.ident, ""):
            self.state.streams[asker].put(f"y/{event.ident}", [event.code, event.text[:500]])
        self._judged(self.state.me, event.ident, Code(event.code), event.text)
        self.state.ctx.dirty = True

    def _judged(self, node: str, ident: str, code: Code, text: str) -> None:
        mine = self.mine
        if mine is None or mine.ident != ident or mine.committed:
            return
        if code is not Code.DONE:
            self._fail(code, f"nothing was changed; {node}: {text}")
            return
        mine.waiting.pop(node, 0)
        if not mine.waiting:
            mine.committed, mine.until_ns = True, self.state.ctx.now + TELL_MS * MS
            self.state.set_register(APPLY, "", ident)
            self.state.persist_at = 0
        self.state.ctx.dirty = True

    def _fail(self, code: Code, text: str) -> None:
        assert self.mine is not None
        row = self.state.journal.commands.get(self.mine.command)
        self.mine = None
        if row is not None:
            self.state.journal.update(self.state.ctx, row, CommandState.FAILED, code, text)

    def look(self) -> None:
        state, ctx, mine = self.state, self.state.ctx, self.mine
        if mine is None:
            self._look_halfway()
            if self.staged_here and state.board.registers.get(APPLY) == self.staged_here:
                self._go(0)
            return
        heard = [p.name for p in state.peers.values() if p.heard()]
        if not mine.committed:
            lost = [
                n for n, was in mine.waiting.items()
                if n != state.me and (n not in heard or state.peers[n].incarnation != was)
            ]  # fmt: skip
            if lost:
                why = f"{', '.join(lost)} fell silent, or started anew, before it had judged the file"
                self._fail(Code.PEER_LOST, f"nothing was changed; {why}; apply it again")
            elif ctx.now >= mine.until_ns:
                names = ", ".join(sorted(mine.waiting))
                self._fail(Code.TIMED_OUT, f"nothing was changed; no word of {names} within {STAGE_MS // 1000} s")
            else:
                ctx.wake(mine.until_ns)
        elif ctx.now >= mine.until_ns or not any(
            s.queue or s.under_way for n, s in state.streams.items() if n in heard
        ):
            self.mine = None
            self._go(mine.command)
        else:
            ctx.wake(min(mine.until_ns, ctx.now + 20 * MS))

    def _go(self, command: int) -> None:
        ident, self.staged_here = self.staged_here, ""
        self.state.ctx.emit(Adopt(ident, command))

    # ------------------------------------------------------------------------------------------------------- halfway

    def _look_halfway(self) -> None:
        """Forget the former sets of nodes when it is time for it here."""
        state, ctx = self.state, self.state.ctx
        if not state.config.webs or state.leaving:
            return
        waits = self._not_yet()
        if waits:
            self.halfway_ns = 0
            self._tell(waits)
            return
        # What was leased before, and proven without the new nodes, is over or proven anew.
        self.halfway_ns = self.halfway_ns or ctx.now
        due = max(self.halfway_ns + state.longest_ms * MS * TAKER_PART // 100, self.forward_at)
        if ctx.now < due:
            ctx.wake(due)
            return
        self.forward_at = ctx.now + AGAIN_MS * MS
        ctx.wake(self.forward_at)
        ctx.emit(Forward(self.command))

    def _not_yet(self) -> str:
        """Why the former sets of nodes count still, "" when they need not."""
        state = self.state
        for peer in state.peers.values():
            if not peer.up() or peer.flags & NodeFlag.LEAVING:
                return f"{peer.name} is not there"
            if not state.config.goes_with(peer.digest):
                return f"the configuration of {peer.name} is another one"
        for name, webs in state.config.webs.items():
            for node in state.config.group(name).also:
                if node in webs[-1]:
                    continue  # asked from here on as well
                if state.owns(name) if node == state.me else not state.peers[node].flag(name, GroupFlag.CLEAN):
                    return f"{node} has {name} still"
        return ""

    def _tell(self, waits: str) -> None:
        """The command that brought this engine halfway says what it waits for."""
        row = self.state.journal.commands.get(self.command)
        text = f"{HALFWAY}; {waits}"
        if row is not None and row.state is CommandState.RUNNING and row.text != text:
            self.state.journal.update(self.state.ctx, row, CommandState.RUNNING, Code.DONE, text)
