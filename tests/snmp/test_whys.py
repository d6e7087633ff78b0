"""What `hasnmp why GROUP` says, as rows: split and joined again, asked for in time, and gone with its group."""

from __future__ import annotations

import asyncio
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from hasnmp.model import View
from hasnmp.snmp.objects import Reader, text_index
from hasnmp.snmp.whys import AGAIN_S, PAUSE_S, TEXT_SIZE, Whys, lines, pieces

WORDS = st.text(st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters=" "), min_size=1, max_size=120)


@given(st.lists(st.lists(WORDS, min_size=1, max_size=30).map(" ".join), max_size=5))
def test_lines_are_the_same_after_their_rows(told: list[str]) -> None:
    rows = [piece for line in told for piece in pieces(line)]
    assert all(0 < len(row) <= TEXT_SIZE for row in rows)
    assert lines(row.decode() for row in rows) == told


def test_a_word_too_long_for_a_row_is_cut_between_characters() -> None:
    first, second, third = pieces("é" * 300)
    assert len(first) == 254 and second.startswith(b" ") and (first + second[1:] + third[1:]).decode() == "é" * 300


def rows(whys: Whys) -> dict[tuple[int, ...], bytes]:
    table = whys.table()
    reader = Reader(View(), 0, 10**9)
    return {index: table.columns[0].read(reader, row) for index, row in table.rows(View())}  # type: ignore[misc]


class Engine:
    """asked: every question, with when it came."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, float]] = []
        self._came = asyncio.Event()

    async def ask(self, group: str) -> list[str] | None:
        self.asked.append((group, asyncio.get_running_loop().time()))
        self._came.set()
        number = sum(name == group for name, _ in self.asked)
        return None if group == "db" else [f"group {group}: look {number}"]

    async def until(self, number: int) -> None:
        """So many questions, and what the last was answered with taken in."""
        async with asyncio.timeout(20):
            while len(self.asked) < number:
                self._came.clear()
                await self._came.wait()
            await asyncio.sleep(0.01)


def test_groups_are_asked_about_when_something_happens_and_forgotten_when_they_go() -> None:
    async def run() -> None:
        groups, engine, changed = ["web", "db"], Engine(), asyncio.Event()
        whys = Whys(lambda: tuple(groups), engine.ask, changed.set, lambda: 10**9)
        keeping = asyncio.create_task(whys.keep())
        begun_s = asyncio.get_running_loop().time()
        await engine.until(2)
        assert sorted(name for name, _ in engine.asked) == ["db", "web"]
        assert rows(whys) == {(*text_index("web"), 1): b"group web: look 1"}  # of the other nothing is known
        whys.touch("web")
        await engine.until(3)
        name, at_s = engine.asked[2]
        assert name == "web" and at_s - begun_s < AGAIN_S, "its turn alone would have come later"
        assert list(rows(whys).values()) == [b"group web: look 2"]
        changed.clear()
        groups.remove("web")
        whys.touch("")
        await asyncio.wait_for(changed.wait(), 20)
        assert rows(whys) == {}
        keeping.cancel()

    asyncio.run(run())


def test_a_thousand_groups_cost_the_engine_ten_questions_a_second() -> None:
    async def run() -> list[float]:
        engine = Engine()
        names = [f"g{number}" for number in range(1000)]
        keeping = asyncio.create_task(Whys(lambda: names, engine.ask, lambda: None, lambda: 0).keep())
        await engine.until(5)
        keeping.cancel()
        return [at_s for _, at_s in engine.asked]

    assert all(after - before >= PAUSE_S * 0.99 for before, after in pairwise(asyncio.run(run())))
