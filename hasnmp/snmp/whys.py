"""haGroupWhyTable: what `hasnmp why GROUP` says, kept up by asking the engine now and then, for no request may wait for it.

A group is asked about SOON_S after an event of it, for decisions follow on what happened, and every AGAIN_S; one question
each PAUSE_S at most, so that a thousand groups cost the engine no more than ten.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from hasnmp.model import View
from hasnmp.snmp.objects import Column, Index, Oid, Reader, Syntax, TableDef, text_index
from hasnmp.snmp.oids import ROOT

VIEW_TABLE = "whys"  # what the store calls the rows of it; no table of the engine's view
SOON_S, AGAIN_S, PAUSE_S = 0.2, 5.0, 0.1
TEXT_SIZE = 255  # octets of an SnmpAdminString
_ENTRY = (*ROOT, 1, 14, 1)
TEXT: Oid = (*_ENTRY, 2)  # haGroupWhyText
AGE: Oid = (*_ENTRY, 3)  # haGroupWhyAge, milliseconds


@dataclass(frozen=True, slots=True)
class _Row:
    text: bytes
    ns: int


def pieces(line: str) -> list[bytes]:
    """A line as texts that a row can hold; all but the first begin with a space."""
    found = []
    octets = line.encode()
    while len(octets) > TEXT_SIZE:
        at = octets.rfind(b" ", 1, TEXT_SIZE + 1)
        if at < 1:
            at = len(octets[:TEXT_SIZE].decode(errors="ignore").encode())
            octets = octets[:at] + b" " + octets[at:]
        found.append(octets[:at])
        octets = octets[at:]
    return [*found, octets]


def lines(texts: Iterable[str]) -> list[str]:
    """The lines, of their pieces in order."""
    found: list[str] = []
    for text in texts:
        if text.startswith(" ") and found:
            found[-1] += text
        else:
            found.append(text)
    return found


class Whys:
    """groups: those that there are now. ask: the engine's lines for one; None: it says nothing now. changed: told, before
    anybody reads them, that the rows are others."""

    def __init__(
        self, groups: Callable[[], Iterable[str]], ask: Callable[[str], Awaitable[list[str] | None]], changed: Callable[[], None],
        now_ns: Callable[[], int],
    ) -> None:  # fmt: skip
        self._groups = groups
        self._ask = ask
        self._changed = changed
        self._now_ns = now_ns
        self._said: dict[str, tuple[_Row, ...]] = {}
        self._due_s: dict[str, float] = {}  # of each group, by time.monotonic()
        self._touched = asyncio.Event()

    def touch(self, group: str) -> None:
        """Something happened that concerns this group; "": it may concern any."""
        soon_s = time.monotonic() + SOON_S
        for name in (group,) if group else tuple(self._groups()):
            self._due_s[name] = min(soon_s, self._due_s.get(name, soon_s))
        self._touched.set()

    async def keep(self) -> None:
        """Never ends."""
        while True:
            now_s = time.monotonic()
            groups = set(self._groups())
            for gone in self._due_s.keys() - groups:
                del self._due_s[gone]
                if self._said.pop(gone, None):
                    self._changed()
            for name in groups:
                self._due_s.setdefault(name, now_s)
            first = min(self._due_s, key=lambda name: self._due_s[name], default="")
            wait_s = self._due_s[first] - now_s if first else AGAIN_S
            if wait_s > 0:
                self._touched.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._touched.wait()
                continue
            self._due_s[first] = now_s + AGAIN_S
            told = await self._ask(first)
            if told is not None:
                now_ns = self._now_ns()
                self._said[first] = tuple(_Row(piece, now_ns) for line in told for piece in pieces(line))
                self._changed()
            await asyncio.sleep(PAUSE_S)

    def table(self) -> TableDef:
        def rows(_: View) -> list[tuple[Oid, Any]]:
            said = tuple(self._said.items())  # the loop may add to it meanwhile
            found = [((*text_index(name), number), row) for name, told in said for number, row in enumerate(told, 1)]
            return sorted(found, key=lambda pair: pair[0])

        def text(_: Reader, row: Any) -> bytes:
            return bytes(row.text)

        def age(reader: Reader, row: Any) -> int:
            return reader.age_ms(row.ns)

        return TableDef(
            "haGroupWhyTable", _ENTRY, (Index("haGroupName", 0, Syntax.OCTETS), Index("haGroupWhyLine", 1, Syntax.UNSIGNED32)),
            rows,
            (
                Column("haGroupWhyText", 2, Syntax.OCTETS, "read-only", text),
                Column("haGroupWhyAge", 3, Syntax.UNSIGNED32, "read-only", age, volatile=True),
            ),
            (VIEW_TABLE,),
        )  # fmt: skip
