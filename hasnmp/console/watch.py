"""`watch` and `events --follow`: what happens, as it happens, until Ctrl-C. A restarted engine is found again."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from hasnmp.console import report
from hasnmp.console.control import Control
from hasnmp.console.tables import Screen
from hasnmp.errors import Unreachable
from hasnmp.model import View

if TYPE_CHECKING:
    from hasnmp.console.remote import Remote

Connect = Callable[[], "Control | Remote"]  # another connection, to the same place

REDRAW_S = 0.1  # the engine sends at most one batch in this time
QUIET_S = 2.5  # the engine speaks each second; longer silence is shown
RETRY_S = 0.5


def events(connect: Connect, last: int, as_json: bool, screen: Screen) -> int:
    """Print the newest `last` events that are kept, then each new one."""
    seen: set[tuple[int, int]] = set()

    def show(view: View) -> None:
        # By the view and not by the messages: what happened while the connection was away is in the snapshot.
        nonlocal seen, last
        kept = report.events(view)
        # Not by its number alone: an engine whose disk did not have the newest events gives their numbers to others.
        new = [event for event in kept if (event.id, event.wall_ms) not in seen]
        for event in new[-last:] if last else []:
            print(json.dumps(report.row_json(event)) if as_json else report.event_line(event, screen), flush=True)
        if kept:
            seen = {(event.id, event.wall_ms) for event in kept}
        last = len(kept) + 1000

    return _follow(connect, show, lambda text: print(text, file=sys.stderr, flush=True))


def status(connect: Connect, screen: Screen) -> int:
    """On a terminal the status, redrawn in place, with the newest events below; otherwise a line for each event."""
    if not screen.terminal:
        return events(connect, 0, False, screen)
    newest: View | None = None
    drawn = ""

    def draw(view: View | None, note: str = "") -> None:
        nonlocal newest, drawn
        newest = view or newest
        lines = report.status(newest, Screen()) if newest else []
        size = Screen()
        room = size.height - len(lines) - 3
        if newest and room > 1:
            lines += ["", *(report.event_line(event, size, whole=False) for event in report.events(newest)[-room:])]
        lines = lines[: size.height - 2]
        lines.append(note or "Ctrl-C ends this")
        # Each line clears its own rest: clearing the whole screen first would flicker.
        text = "\033[H" + "".join(f"{line}\033[K\n" for line in lines) + "\033[J"
        if text != drawn:
            sys.stdout.write(text)
            sys.stdout.flush()
            drawn = text

    sys.stdout.write("\033[?1049h\033[?25l")  # the alternate screen, without a cursor
    try:
        return _follow(connect, draw, lambda text: draw(None, text))
    finally:
        sys.stdout.write("\033[?25h\033[?1049l")
        sys.stdout.flush()


def _follow(connect: Connect, show: Callable[[View], None], say: Callable[[str], None]) -> int:
    """Call show with the view at each change. The first connection must succeed (Unreachable); later ones are retried."""
    control: Control | Remote | None = connect()
    said = ""

    def once(text: str) -> None:
        nonlocal said
        if text and text != said:
            say(text)
        said = text

    try:
        while True:
            try:
                if control is None:
                    control = connect()
                show(control.view())
                once("")
                heard = drawn = time.monotonic()
                dirty = False
                while True:
                    message = control.receive(time.monotonic() + REDRAW_S)
                    now = time.monotonic()
                    if message is not None:
                        heard, dirty = now, True
                        once("")
                    elif now - heard > QUIET_S:
                        once("the engine says nothing: what you see stands still")
                    if dirty and (now - drawn >= REDRAW_S or (message is not None and message["type"] == "event")):
                        show(control.mirror.view)
                        drawn, dirty = now, False
            except Unreachable as error:
                if control is not None:
                    control.close()
                    control = None
                once(f"{error}; trying again")
                time.sleep(RETRY_S)
    except KeyboardInterrupt:
        return 0
    finally:
        if control is not None:
            control.close()
