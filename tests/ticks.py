"""Time as an event loop has it: what keeps the loop itself from running, a busy machine or a pause of it, does not count.

What the loop's own thread does does count, for whoever computes or waits in a loop delays all that is in it.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from pathlib import Path

from tests.cluster.control import control, stalled_ms

TICK_S = 0.01
HELD_MS = 100  # less than that in one go is not told from how a busy machine wakes a thread


def queued_ns() -> int:
    """For how long this thread could have run, and another one had the processor (proc_schedstat: the second number)."""
    return int(Path(f"/proc/self/task/{threading.get_native_id()}/schedstat").read_text().split()[1])


class Ticks:
    """Counts how often this loop came round a pause of 10 ms, or could have. Use as a context manager, within the loop.

    A bound on what happens in a loop, "within 100 ms", is one on what else the same loop did meanwhile: `at_most(100)`. On an
    idle machine that is 100 ms; on a busy one the loop's own timers are late by as much as what is looked at. What holds the
    loop up for longer than HELD_MS while nobody else had the processor, and the machine did not stand still, is counted whole.
    """

    def __init__(self) -> None:
        self.count = 0
        self._held_ms = 0.0

    def __enter__(self) -> Ticks:
        control()  # it must have been there before anything is judged by it
        self._begin()
        self._task = asyncio.get_running_loop().create_task(self._run())
        return self

    def __exit__(self, *_: object) -> None:
        self._task.cancel()

    def _begin(self) -> None:
        self._since_ns, self._queued_ns = time.monotonic_ns(), queued_ns()

    def _held(self) -> float:
        """For how many ms, beyond a tick, its own thread has kept this loop from the next one."""
        now_ns = time.monotonic_ns()
        passed_ms = (now_ns - self._since_ns - (queued_ns() - self._queued_ns)) / 1e6 - TICK_S * 1000
        if passed_ms > HELD_MS:
            passed_ms -= stalled_ms(self._since_ns, now_ns)
        return passed_ms if passed_ms > HELD_MS else 0.0

    async def _run(self) -> None:
        while True:
            self._begin()
            await asyncio.sleep(TICK_S)
            self.count += 1
            self._held_ms += self._held()

    def at_most(self, ms: float) -> bool:
        """No more than so much of the loop's time has passed."""
        return self.count + (self._held_ms + self._held()) / 1000 / TICK_S <= math.ceil(ms / 1000 / TICK_S)
