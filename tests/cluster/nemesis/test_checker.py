"""The checker finds nothing in a good history, and each rule's breach in one that has it."""

from __future__ import annotations

import copy
import select
import socket
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.cluster.nemesis import picture
from tests.cluster.nemesis.checker import check
from tests.cluster.nemesis.history import (
    Frozen,
    History,
    Mark,
    Op,
    Record,
    RoundTime,
    Told,
    begun_of,
    log_of,
    op_of,
    told_of,
)
from tests.cluster.nemesis.register import SO_TIMESTAMPNS, boot_ns, came_ns, record

MS = 1_000_000


def good() -> History:
    """a writes 1..5 under token 7 until 1000 ms; b 6..10 under token 8 from 1200 ms; a write is unknown and stands, one does not."""
    history = History(served_within_ms=500, unnoticed_ms=300, room_ms=100)
    for seq in range(1, 11):
        node, token = ("a", 7) if seq <= 5 else ("b", 8)
        at = (seq * 150 if seq <= 5 else 1000 + (seq - 5) * 200) * MS
        history.log.append(Record(seq, token, node, f"{node}-1", at, at - MS, f"v{seq}"))
        outcome = "unknown" if seq == 5 else "ok"
        answer = (seq, token, node, f"{node}-1", at + MS) if seq != 5 else ()
        history.ops.append(Op("c1", "w", f"v{seq}", at - 5 * MS, at + 5 * MS, outcome, *answer))
        if seq != 5:
            history.ops.append(
                Op("c2", "r", f"v{seq}", at + 6 * MS, at + 9 * MS, "ok", seq, token, node, f"{node}-1", at + 7 * MS)
            )
    history.ops.append(Op("c3", "w", "vanished", 1000 * MS, 1250 * MS, "unknown"))
    history.ops.append(Op("c3", "w", "unsent", 1000 * MS, 1250 * MS, "none"))
    history.told = [
        Told("a", 7, 50 * MS, 500 * MS),
        Told("a", 7, 400 * MS, 1000 * MS),
        Told("b", 8, 1150 * MS, 2100 * MS),
    ]
    history.begun = {"a-1": 100 * MS, "b-1": 1160 * MS}
    history.rounds = [
        RoundTime(1, 100 * MS, 1300 * MS, 1500 * MS),
        RoundTime(2, 1500 * MS, 1600 * MS, 2000 * MS, True, "b"),
    ]
    history.marks = [Mark(900 * MS, "a", "power", ""), Mark(1300 * MS, "", "healed", "")]
    return history


def change(history: History, value: str, kind: str = "w", /, **fields: object) -> None:
    place = next(n for n, op in enumerate(history.ops) if (op.value, op.kind) == (value, kind))
    history.ops[place] = replace(history.ops[place], **fields)  # type: ignore[arg-type]


def rewrite(history: History, seq: int, /, **fields: object) -> None:
    history.log[seq - 1] = replace(history.log[seq - 1], **fields)  # type: ignore[arg-type]


def half_explained(history: History) -> None:
    """In no gap did it stand still for so long that less than 150 ms are left."""
    history.unnoticed_ms = 150
    history.stalls = [[(1520 * MS, 1530 * MS)], [(at * MS, at * MS + 20 * MS) for at in range(1520, 2000, 200)]]


def two_write_in_turn(history: History) -> None:
    """a goes on under its old token after b has written."""
    rewrite(history, 8, token=7, node="a", instance="a-1")


def one_token_twice(history: History) -> None:
    for seq in range(6, 11):
        rewrite(history, seq, token=7)


def overwritten(history: History) -> None:
    """a's last write landed where b's first one stood."""
    rewrite(history, 6, token=7, node="a", instance="a-1", value="vanished")


def late_answer(history: History) -> None:
    """a answers a read under its old token, though after b's first answer."""
    history.ops.append(Op("c4", "r", "v4", 1250 * MS, 1260 * MS, "ok", 4, 7, "a", "a-1", 1255 * MS))


def stale_read(history: History) -> None:
    """b itself answers with what stood there before its own last write."""
    history.ops.append(Op("c4", "r", "v6", 1650 * MS, 1660 * MS, "ok", 6, 8, "b", "b-1", 1655 * MS))


def frozen(history: History) -> None:
    """b froze at 2000 ms, its lease ended at 2100, and a slow disk made its last record late; at 2900 it went on.

    a had the next lease by then, but waited with the start until b would be fenced.
    """
    history.kill_ms = 100
    history.frozen = [Frozen("b", 2000 * MS, 2900 * MS)]
    history.ops = [op for op in history.ops if op.value != "v10"]
    history.ops.append(Op("c1", "w", "v10", 1985 * MS, 2235 * MS, "unknown"))
    history.told.append(Told("a", 9, 2150 * MS, 3500 * MS))
    rewrite(history, 10, stamp_ns=2800 * MS, came_ns=2099 * MS)


def frozen_but(spoil: Callable[[History], None]) -> Callable[[History], None]:
    def both(history: History) -> None:
        frozen(history)
        spoil(history)

    return both


def stood_still(history: History, at_ms: int, *stalls: tuple[int, int] | list[tuple[int, int]]) -> None:
    """b's lease ended at 2100 ms, and it was due to be ended from 2000 on; its last record was made at at_ms."""
    history.kill_ms = 100
    history.stalls = [[(since * MS, until * MS) for since, until in one] for one in stalls]  # type: ignore[misc]
    history.ops = [op for op in history.ops if op.value != "v10"]
    history.ops.append(Op("c1", "w", "v10", 1985 * MS, 2235 * MS, "unknown"))
    rewrite(history, 10, stamp_ns=at_ms * MS, came_ns=2099 * MS)


def no_write_at_all(history: History) -> None:
    history.ops = [op for op in history.ops if op.ended_ns < 1300 * MS]


BAD: dict[str, tuple[str, Callable[[History], None]]] = {
    "a block is torn": ("torn", lambda h: rewrite(h, 3, seq=0)),
    "a block is another's": ("gap", lambda h: rewrite(h, 3, seq=4)),
    "two write in turn": ("two-owners", two_write_in_turn),
    "a token of two nodes": ("two-owners", one_token_twice),
    "an answer under an older token": ("two-owners", late_answer),
    "the log is shorter than what was acknowledged": ("lost", lambda h: h.log.pop()),
    "an acknowledged write was overwritten": ("lost", overwritten),
    "an acknowledged write is somebody else's": ("lost", lambda h: rewrite(h, 9, instance="b-2")),
    "a value stands twice": ("invented", lambda h: rewrite(h, 9, value="v2")),
    "a value that was never sent": ("invented", lambda h: rewrite(h, 5, value="unsent")),
    "a value is read before it was sent": ("invented", lambda h: change(h, "v2", "w", begun_ns=700 * MS, ended_ns=800 * MS)),
    "a read of the past": ("stale", stale_read),
    "a read of what is not there": ("stale", lambda h: change(h, "v7", "r", value="v6")),
    "two writes at one place": ("stale", lambda h: h.ops.append(Op("c4", "w", "v3", 600 * MS, 610 * MS, "ok", 3, 7, "a", "a-1", 605 * MS))),
    "a reply after the lease": ("past-lease", lambda h: change(h, "v10", "r", stamp_ns=2101 * MS)),
    "a record after the lease": ("past-lease", lambda h: rewrite(h, 10, stamp_ns=2101 * MS)),
    "a reply before the lease": ("past-lease", lambda h: change(h, "v6", "w", stamp_ns=1149 * MS)),
    "an extension that came after the end": ("past-lease", lambda h: h.told.__setitem__(1, Told("a", 7, 650 * MS, 1000 * MS))),
    "no lease at all": ("past-lease", lambda h: h.told.pop()),
    "a machine that stood still for less": ("past-lease", lambda h: stood_still(h, 2110, [(1990, 2009)])),
    "a machine that stood still before it was due": ("past-lease", lambda h: stood_still(h, 2150, [(1700, 1990)])),
    "two processors that stood still in turn": ("past-lease", lambda h: stood_still(h, 2250, [(1990, 2080)], [(2080, 2180)])),
    "a request that came after the end, and a machine that stood still": ("past-lease", lambda h: (
        stood_still(h, 2400, [(1990, 2390)]), rewrite(h, 10, came_ns=2101 * MS))),
    "another was started before the record of a machine that stood still": ("past-lease", lambda h: (
        stood_still(h, 2400, [(1990, 2390)]), h.begun.update({"a-2": 2350 * MS}))),
    "a reply of a machine that stood still": ("past-lease", lambda h: (
        stood_still(h, 2090, [(1990, 2390)]), change(h, "v9", "r", stamp_ns=2350 * MS))),
    "nobody was frozen": ("past-lease", frozen_but(lambda h: h.frozen.clear())),
    "the other was frozen": ("past-lease", frozen_but(lambda h: h.frozen.__setitem__(0, Frozen("a", 2000 * MS, 2900 * MS)))),
    "it froze after the lease's end": ("past-lease", frozen_but(lambda h: h.frozen.__setitem__(0, Frozen("b", 2101 * MS, 2900 * MS)))),
    "who went on let it be": ("past-lease", frozen_but(lambda h: h.frozen.__setitem__(0, Frozen("b", 2000 * MS, 2699 * MS)))),
    "two freezes, and who could end it between them": ("past-lease", frozen_but(lambda h: h.frozen.__setitem__(
        slice(None), [Frozen("b", 2000 * MS, 2090 * MS), Frozen("b", 2200 * MS, 2900 * MS)]))),
    "a request that came after the lease's end": ("past-lease", frozen_but(lambda h: rewrite(h, 10, came_ns=2101 * MS))),
    "a frozen node's reply": ("past-lease", frozen_but(lambda h: h.ops.append(
        Op("c4", "r", "v10", 2700 * MS, 2810 * MS, "ok", 10, 8, "b", "b-1", 2805 * MS)))),
    "another was started before a frozen node's record": ("past-lease", frozen_but(lambda h: h.begun.update({"a-2": 2799 * MS}))),
    "nobody serves": ("not-served", no_write_at_all),
    "it serves too late": ("not-served", lambda h: setattr(h, "served_within_ms", 50)),
    "it is not steady": ("not-served", lambda h: setattr(h.rounds[0], "steady_ns", 0)),
    "a gap in a quiet round": ("noticed", lambda h: setattr(h, "unnoticed_ms", 150)),
    "a gap that the machine explains in part only": ("noticed", half_explained),
    "a move in a quiet round": ("noticed", lambda h: setattr(h.rounds[1], "owner", "a")),
}  # fmt: skip


def test_a_good_history_has_no_violation() -> None:
    assert check(good()) == []


def test_a_frozen_nodes_record_of_a_request_that_came_in_time_may_be_late() -> None:
    history = good()
    frozen(history)
    assert check(history) == []
    rewrite(history, 10, stamp_ns=3000 * MS)  # whoever goes on has its time, too
    assert check(history) == []
    history.begun["a-2"] = 3001 * MS  # and afterwards the group is another's
    assert check(history) == []


def test_when_a_request_came_is_told_by_the_kernel_not_by_when_it_was_read() -> None:
    with socket.socket() as server, socket.socket() as client:
        server.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        server.bind(("127.0.0.1", 0))
        server.listen()
        client.connect(server.getsockname())
        connection, _ = server.accept()
        with connection:
            for _ in range(1000):  # the kernel begins to note it a moment after the first socket has asked for that
                sent_ns = boot_ns()
                client.send(b"w x\n")
                assert select.select([connection], [], [], 30)[0]
                seen_ns = boot_ns()
                _, ancillary, _, _ = connection.recvmsg(100, 128)
                came = came_ns(ancillary)
                assert came >= sent_ns  # never too early, whatever the machine does meanwhile
                if came <= seen_ns:  # and where it ran on, no later than it was seen: it is not the time of the reading
                    break
        assert ancillary
        assert came <= seen_ns
        assert came_ns([]) > seen_ns


def test_a_gap_in_which_the_machine_stood_still_is_none_of_hasnmps() -> None:
    history = good()
    history.unnoticed_ms = 150  # its gaps are of up to 196 ms
    history.stalls = [[], [(at * MS, at * MS + 50 * MS) for at in range(1620, 2000, 200)]]
    assert check(history) == []


def test_a_record_may_be_as_late_as_the_machine_stood_still() -> None:
    for at_ms, stall in ((2390, (1990, 2390)), (2399, (2099, 2400)), (2480, (2010, 2400))):
        history = good()
        stood_still(history, at_ms, [], [stall])
        assert check(history) == [], at_ms


def test_nothing_is_said_of_a_quiet_round_in_which_the_machine_stood_still_for_longer_than_a_lease_has_room() -> None:
    history = good()
    history.unnoticed_ms = 50
    history.stalls = [[(1700 * MS, 1801 * MS)], []]
    assert check(history) == []
    history.stalls = [[(1700 * MS, 1750 * MS), (1751 * MS, 1800 * MS)], [(1400 * MS, 1550 * MS)]]
    assert {violation.rule for violation in check(history)} == {"noticed"}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_history_is_found_bad(name: str) -> None:
    rule, spoil = BAD[name]
    history = copy.deepcopy(good())
    spoil(history)
    found = check(history)
    assert rule in {violation.rule for violation in found}, found
    assert all(violation.text for violation in found)


def test_many_violations_of_one_rule_are_told_by_the_first_ones() -> None:
    history = good()
    history.told.clear()
    found = check(history, most=3)
    assert [violation.rule for violation in found] == ["past-lease"] * 3


def test_what_register_and_guardian_wrote_is_read_back_on_the_laboratorys_clock(tmp_path) -> None:  # type: ignore[no-untyped-def]
    image = tmp_path / "register"
    image.write_bytes(record(1, 7, "a", "a-1", 5000, 4900, "x") + b"torn".ljust(512) + bytes(1024))
    assert log_of(image, {"a": 1000}) == [Record(1, 7, "a", "a-1", 4000, 3900, "x"), Record(0)]
    assert begun_of([*log_of(image, {}), Op("c1", "r", "x", 1, 9, "unknown")], {}) == {"a-1": 1}
    assert begun_of([Record(1, 7, "a", "a-20-5000", 1, 1, "x")], {"a": 1000, "b": 7}) == {"a-20-5000": 4000}
    line = '["c1", "r", "x", 1, 9, "ok", 1, 7, "a", "a-1", 5000]'
    assert op_of(line, {"a": 1000}) == Op("c1", "r", "x", 1, 9, "ok", 1, 7, "a", "a-1", 4000)
    log = [
        '{"event": "lease_told", "group": "reg", "token": 7, "now_ns": 5000, "until_ns": 6000}',
        "not JSON",
        '{"event": "x"}',
    ]
    assert told_of("a", log, "reg", 1000) == [Told("a", 7, 4000, 5000)]
    assert told_of("a", log, "web", 1000) == []


def test_the_picture_names_every_violation_and_every_fault() -> None:
    history = good()
    late_answer(history)
    drawn = picture.draw(history, check(history), "seed <1>")
    assert drawn.startswith("<svg") and drawn.rstrip().endswith("</svg>")
    assert "two-owners" in drawn and "power" in drawn and "healed" in drawn and "seed &lt;1&gt;" in drawn
