"""What every part of the engine shares during one step: the time, the effects so far, and the next wake-up."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from hasnmp.core.events import Effect
from hasnmp.settings import Config

MS = 1_000_000  # nanoseconds
NEVER = 1 << 62


@dataclass(slots=True)
class Context:
    """now: CLOCK_BOOTTIME in ns, read before the step. Parts append effects, and call wake() for what they wait for."""

    config: Config
    me: str
    now: int = 0
    wall_offset_ms: int = 0  # Unix time minus CLOCK_BOOTTIME
    deadline: int = 0
    out: list[Effect] = field(default_factory=list)
    random: int = 1
    attempts: int = 0
    dirty: bool = True  # something changed that the parts which decide must look at before this step ends
    beat: bool = False  # a heartbeat is to leave at the end of this step, whatever the interval says

    def emit(self, effect: Effect) -> None:
        self.out.append(effect)

    def wake(self, at_ns: int) -> None:
        """The parts must look again at at_ns at the latest. A moment that is past already must not make the engine spin:
        what is due is done in this look, and what could not be done is tried again a little later."""
        if at_ns <= self.now:
            at_ns = self.now + 10 * MS
        if at_ns < self.deadline:
            self.deadline = at_ns

    def attempt(self) -> int:
        """A number that no earlier effect of this engine, nor of a former life, bore."""
        self.attempts += 1
        return self.attempts

    def jitter(self, limit_ns: int) -> int:
        """0 <= n < limit_ns, from the random bits that came with Started (xorshift64: back-off, not secrecy)."""
        x = self.random
        x ^= (x << 13) & 0xFFFFFFFFFFFFFFFF
        x ^= x >> 7
        x ^= (x << 17) & 0xFFFFFFFFFFFFFFFF
        self.random = x or 1
        return x % limit_ns if limit_ns > 0 else 0

    def lately(self, times_ms: Iterable[int], within_s: int) -> list[int]:
        """Those of the Unix times that are no further from now than that. On either side: they came from a clock that may have been
        ahead and was set right since, or from another node's."""
        return [t for t in times_ms if abs(self.wall_ms() - t) < within_s * 1000]

    def wall_ms(self, at_ns: int | None = None) -> int:
        """Unix time in ms of a moment of this boot's clock (now, without an argument)."""
        return (self.now if at_ns is None else at_ns) // MS + self.wall_offset_ms
