"""Text for people: words, ages, colours and tables that fit the screen. Knows no row of the model; see report.py."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from enum import Enum

WIDTH = 80  # where nobody says otherwise
NARROWEST = 6  # a column is not cut below this

# SGR codes by the meaning, so that one place decides what a colour says.
_SGR = {"good": "32", "warn": "33", "bad": "31", "strong": "1", "dim": "2"}


class Screen:
    """What the output is able to show. Colours only on a terminal, and never with NO_COLOR (no-color.org)."""

    def __init__(self, terminal: bool | None = None) -> None:
        self.terminal = sys.stdout.isatty() if terminal is None else terminal
        self.colours = self.terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self.width = shutil.get_terminal_size((WIDTH, 24)).columns if self.terminal else WIDTH
        self.height = shutil.get_terminal_size((WIDTH, 24)).lines

    def paint(self, text: str, meaning: str) -> str:
        return f"\033[{_SGR[meaning]}m{text}\033[0m" if self.colours and meaning and text else text


def clean(text: object) -> str:
    """One line without control characters: a service's message must not be able to drive the reader's terminal."""
    return "".join(c if c.isprintable() else " " for c in str(text))


def word(value: Enum) -> str:
    """An enumeration's name as people read it: STOP_FAILED -> "stop failed"."""
    return value.name.lower().replace("_", " ")


def label(value: Enum) -> str:
    """An enumeration's name as the MIB spells it: STOP_FAILED -> "stopFailed"."""
    head, *rest = value.name.lower().split("_")
    return head + "".join(part.capitalize() for part in rest)


def span(ns: int) -> str:
    """A duration in nanoseconds, in two digits or so: "0.4 s", "12 s", "5 min", "3 h 20 min", "2 d 4 h"."""
    seconds = max(0, ns) / 1e9
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    if minutes < 120:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def age(then_ns: int, now_ns: int) -> str:
    """How long ago; "-" for never (0)."""
    return span(now_ns - then_ns) if then_ns else "-"


def clock(wall_ms: int, *, day: bool = True) -> str:
    """Unix milliseconds as local time, "2026-11-22 15:04:05.123"; "-" for never."""
    if not wall_ms:
        return "-"
    when = time.localtime(wall_ms / 1000)
    return time.strftime("%Y-%m-%d %H:%M:%S" if day else "%H:%M:%S", when) + f".{wall_ms % 1000:03d}"


Cell = str | tuple[str, str]  # text, or text and the meaning of its colour


def table(screen: Screen, heads: Sequence[str], rows: Iterable[Sequence[Cell]], *, right: str = "") -> list[str]:
    """Lines of a table not wider than the screen. A column that is empty in every row is left out.

    What does not fit of the last column goes on lines of its own below its row, for it says what to do; the others are
    cut, the widest first, with "..." where they were cut.
    right: heads, separated by blanks, whose column is set to the right.
    """
    split = [[(clean(c), "") if isinstance(c, str) else (clean(c[0]), c[1]) for c in row] for row in rows]
    used = [i for i in range(len(heads)) if any(row[i][0] for row in split)]
    if not used:
        return []
    last = len(heads) - 1
    widths = {i: max(len(heads[i]), *(len(row[i][0]) for row in split)) for i in used if i != last}
    room = screen.width - (len(heads[last]) + 2 if last in used else 0) - 2 * (len(widths) - 1)
    while sum(widths.values()) > room and max(widths.values()) > NARROWEST:
        widths[max(widths, key=lambda i: widths[i])] -= 1
    left = screen.width - sum(width + 2 for width in widths.values())
    flush_right = right.split()

    def line(cells: Sequence[tuple[str, str]]) -> list[str]:
        parts = []
        for i, width in widths.items():
            text, meaning = cut(cells[i][0], width), cells[i][1]
            gap = " " * (width - len(text))
            painted = screen.paint(text, meaning)
            parts.append(gap + painted if heads[i] in flush_right else painted + gap)
        text, meaning = cells[last] if last in used else ("", "")
        if len(text) <= left:
            return ["  ".join([*parts, screen.paint(text, meaning)]).rstrip()]
        return [
            "  ".join(parts).rstrip(),
            *(screen.paint(more, meaning) for more in wrap("    " + text, screen.width, "    ")),
        ]

    return [each for cells in ([(head, "dim") for head in heads], *split) for each in line(cells)]


def cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(0, width - 3)] + "..."[:width]


def wrap(text: str, width: int, indent: str = "") -> list[str]:
    """Break clean text at blanks, or where one word is longer than a line; lines after the first are indented."""
    text = clean(text)
    lines: list[str] = []
    while len(text) > width:
        at = text.rfind(" ", len(text) - len(text.lstrip()) + 1, width + 1)
        at = at if at > len(indent) else width
        lines.append(text[:at].rstrip())
        text = indent + text[at:].lstrip()
    return [*lines, text]
