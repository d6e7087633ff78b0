"""Time as an event loop has it: what keeps the loop itself from running, a busy machine or a pause of it, does not count."""

from __future__ import annotations

import asyncio
import math

TICK_S = 0.01


class Ticks:
    """Counts how often this loop came round a pause of 10 ms. Use as a context manager, within the loop.

    A bound on what happens in a loop, "within 100 ms", is one on what else the same loop did meanwhile: `at_most(100)`. On an
    idle machine that is 100 ms; on a busy one the loop's own timers are late by as much as what is looked at.
    """

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> Ticks:
        self._task = asyncio.get_running_loop().create_task(self._run())
        return self

    def __exit__(self, *_: object) -> None:
        self._task.cancel()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.count += 1

    def at_most(self, ms: float) -> bool:
        """No more than so much of the loop's time has passed since the beginning, or since again()."""
        return self.count <= math.ceil(ms / 1000 / TICK_S)

    def again(self) -> None:
        self.count = 0
