"""What nodes tell each other apart from heartbeats: an ordered, acknowledged stream between two incarnations.

Facts are queued under a key and the newest under a key replaces what waits: a slow peer gets fewer messages, never older
ones. One message is under way at a time (stop and wait): a round trip is a millisecond, and the stream carries only what
changed. A new incarnation on either side begins both streams anew, with everything.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from hasnmp.core.context import Context
from hasnmp.wire import MAX_PAYLOAD


@dataclass(slots=True)
class Stream:
    """Both directions between this incarnation and one of a peer's."""

    queue: dict[str, Any] = field(default_factory=dict)  # key -> JSON value, oldest key first
    position: int = 0  # of the message under way, or of the last acknowledged one
    under_way: bytes = b""
    sent_ns: int = 0
    received: int = 0  # up to where we have the peer's stream

    def begin(self) -> None:
        """The peer has a new incarnation: nothing of the old conversation counts."""
        self.queue.clear()
        self.position = self.received = self.sent_ns = 0
        self.under_way = b""

    def put(self, key: str, value: Any) -> None:
        """Queue a fact, in place of what still waits under its key."""
        self.queue.pop(key, None)
        self.queue[key] = value

    def acknowledged(self, position: int) -> None:
        if position == self.position and self.under_way:
            self.under_way = b""

    def next(self, ctx: Context, again_ns: int) -> bytes:
        """The payload to send now, b"" for none: a new message, or the one under way when it has waited again_ns."""
        if self.under_way:
            if ctx.now - self.sent_ns < again_ns:
                ctx.wake(self.sent_ns + again_ns)
                return b""
        elif self.queue:
            self.under_way = self._pack()
            self.position += 1
        else:
            return b""
        self.sent_ns = ctx.now
        ctx.wake(ctx.now + again_ns)
        return self.under_way

    def _pack(self) -> bytes:
        parts: list[str] = []
        size = 2
        for key, value in list(self.queue.items()):
            part = json.dumps([key, value], separators=(",", ":"), ensure_ascii=False)
            length = len(part.encode()) + 1
            if parts and size + length > MAX_PAYLOAD:
                break
            del self.queue[key]
            if length + 2 > MAX_PAYLOAD:
                continue  # its writer bounds every text (journal.clip), so this is a fact that no peer can use
            parts.append(part)
            size += length
        return ("[" + ",".join(parts) + "]").encode()

    def take(self, position: int, payload: bytes) -> list[tuple[str, Any]]:
        """The facts of a message that is the next in order; [] for a repeated or early one."""
        if position != self.received + 1:
            return []
        self.received = position
        try:
            facts = json.loads(payload)
            return [(str(key), value) for key, value in facts]
        except (ValueError, TypeError, RecursionError):
            return []  # signed by a node of our own cluster, yet of a form that this version does not know
