"""Following a command through a restart of the engine, which a change of the configuration always is."""

from __future__ import annotations

import time
from collections.abc import Iterator

from hasnmp.console.control import Control
from hasnmp.errors import Unreachable
from hasnmp.model import CommandRow, EventRow

BACK_S = 10.0  # a new engine answers within a second
PAUSE_S = 0.05


def follow(control: Control, row: CommandRow, timeout_s: float) -> Iterator[CommandRow | EventRow | None]:
    """As Control.follow, and on with the next engine when the one that was asked makes room for it.

    Raises Unreachable: no engine answers for BACK_S.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            for news in control.follow(row, max(0.0, deadline - time.monotonic())):
                if isinstance(news, CommandRow):
                    row = news
                yield news
            return
        except Unreachable:
            control = _again(control.path, min(deadline, time.monotonic() + BACK_S))


def _again(path: str, deadline: float) -> Control:
    while True:
        try:
            control = Control(path)
            control.view()
            return control
        except Unreachable:
            if time.monotonic() >= deadline:
                raise
            time.sleep(PAUSE_S)
