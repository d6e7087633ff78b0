"""SETs in their turn: which one is the repetition of another, who is answered, and what is taken back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from hasnmp.model import CommandRow, CommandState, Verb
from hasnmp.snmp import setting, standard
from hasnmp.snmp.access import PUBLIC, Principal
from hasnmp.snmp.error_status import ErrorStatus
from hasnmp.snmp.ha_objects import OBJECTS
from hasnmp.snmp.objects import Reader, text_index
from hasnmp.snmp.sets import Assignment
from hasnmp.snmp.setting import ANSWERS, SetRequest, Setting
from tests.snmp.views import BOOT_NS, NOW_NS, a_view

Sent = list[tuple[Verb, str]]
FAILOVER, INHIBIT = ("haGroupAction", "web", 2), ("haGroupInhibit", "db", 1)
HOST = "192.0.2.9"


def assignment(name: str, row: str, value: int) -> Assignment:
    return Assignment(OBJECTS[name], text_index(row), int(OBJECTS[name].syntax), value)


def request(number: int, name: str, row: str, value: int) -> SetRequest:
    words = f"{name}.{row}={value}".encode()
    return SetRequest(
        [assignment(name, row, value)], Principal("noc", PUBLIC, PUBLIC), HOST, (HOST, "noc", number, words)
    )


def accepted(command: dict[str, Any]) -> CommandRow:
    verb, target = Verb(command["verb"]), command["target"]
    return CommandRow(1, "snmp:noc", HOST, verb, target, "", "", CommandState.ACCEPTED)


def a_setting(send: Callable[[dict[str, Any], str, str, float], Awaitable[CommandRow | str | None]]) -> Setting:
    identity = standard.Identity(b"\x80" + bytes(7), 1, lambda: 1, 65507, "1", "node-a", standard.Counters())
    return Setting(identity, lambda: Reader(a_view(), BOOT_NS, NOW_NS), send, lambda: None)


def commands_of(requests: list[SetRequest]) -> tuple[Sent, list[tuple[int, int, bool]]]:
    """What the engine gets, and what is answered, when each SET comes after the one before it was answered."""
    sent: Sent = []
    answers: list[tuple[int, int, bool]] = []

    async def send(command: dict[str, Any], who: str, host: str, left_s: float) -> CommandRow:
        sent.append((Verb(command["verb"]), command["target"]))
        return accepted(command)

    async def run() -> None:
        it = a_setting(send)
        serving = asyncio.create_task(it.serve())
        for one in requests:
            answered = asyncio.Event()

            def done(status: int, index: int, again: bool, answered: asyncio.Event = answered) -> None:
                answers.append((status, index, again))
                answered.set()

            it.take(one, done)
            await answered.wait()
        serving.cancel()

    asyncio.run(run())
    return sent, answers


def test_a_set_is_not_done_again_though_another_one_came_between() -> None:
    """Of another process, or another user, on the same host."""
    failover, inhibit = request(4711, *FAILOVER), request(4712, *INHIBIT)
    sent, answers = commands_of([failover, inhibit, failover, inhibit])
    assert sent == [(Verb.FAILOVER, "web"), (Verb.INHIBIT, "db")]
    assert answers == [(0, 0, False), (0, 0, False), (0, 0, True), (0, 0, True)]


def test_other_words_under_the_same_number_make_the_old_words_a_new_set() -> None:
    """A manager whose numbers do not rise inhibits, permits and inhibits."""
    permit = ("haGroupInhibit", "db", 2)
    sent, _ = commands_of([request(1, *INHIBIT), request(1, *permit), request(1, *INHIBIT)])
    assert [verb for verb, _ in sent] == [Verb.INHIBIT, Verb.PERMIT, Verb.INHIBIT]


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setting, "REMEMBERED", 2)
    first = request(1, *INHIBIT)
    sent, _ = commands_of([first, request(2, *INHIBIT), first, request(3, *INHIBIT), first])
    assert len(sent) == 4  # the last one was forgotten for the third


def test_each_repetition_of_a_set_that_waits_is_answered_and_one_is_put_on_record() -> None:
    """In SNMPv3 each has its own msgID, and the answer to the first is no answer to the second."""
    sent: Sent = []
    answers: list[tuple[int, int, int, bool]] = []

    async def run() -> None:
        asked, go_on, answered = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def send(command: dict[str, Any], who: str, host: str, left_s: float) -> CommandRow:
            sent.append((Verb(command["verb"]), command["target"]))
            asked.set()
            await go_on.wait()
            return accepted(command)

        it = a_setting(send)
        serving = asyncio.create_task(it.serve())

        def take(number: int) -> None:
            def done(status: int, index: int, again: bool) -> None:
                answers.append((number, status, index, again))
                answered.set()

            it.take(request(7, *FAILOVER), done)

        take(0)
        await asked.wait()
        for number in range(1, ANSWERS + 2):
            take(number)
        assert not answers
        go_on.set()
        await answered.wait()  # all are answered at once
        serving.cancel()

    asyncio.run(run())
    assert sent == [(Verb.FAILOVER, "web")]
    # The first and the newest: of more than ANSWERS those between are left out.
    assert answers == [(0, 0, 0, False), (3, 0, 0, True), (4, 0, 0, True), (5, 0, 0, True)]


def test_a_command_that_may_still_happen_is_taken_back_with_the_others() -> None:
    """commitFailed says that nothing was changed (RFC 3416 section 4.2.5)."""
    sent: Sent = []

    async def send(command: dict[str, Any], who: str, host: str, left_s: float) -> CommandRow | str:
        sent.append((Verb(command["verb"]), command["target"]))
        return "no answer in time" if command["verb"] == Verb.FREEZE else accepted(command)

    it = a_setting(send)
    both = it.test([assignment("haGroupInhibit", "web", 1), assignment("haGroupFreeze", "db", 1)])
    assert asyncio.run(it.commit(both, "noc", HOST)) == (ErrorStatus.COMMIT_FAILED, 2)
    undone = [(Verb.THAW, "db"), (Verb.PERMIT, "web")]
    assert sent == [(Verb.INHIBIT, "web"), (Verb.FREEZE, "db"), *undone]


def test_a_command_that_may_still_happen_and_cannot_be_taken_back_is_undo_failed() -> None:
    async def send(command: dict[str, Any], who: str, host: str, left_s: float) -> CommandRow | str:
        return "no answer in time" if command["verb"] == Verb.FAILOVER else accepted(command)

    it = a_setting(send)
    both = it.test([assignment("haGroupAction", "web", 2), assignment("haGroupFreeze", "db", 1)])
    assert asyncio.run(it.commit(both, "noc", HOST)) == (ErrorStatus.UNDO_FAILED, 0)


def test_no_command_is_sent_once_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: Sent = []

    async def send(command: dict[str, Any], who: str, host: str, left_s: float) -> CommandRow:
        sent.append((Verb(command["verb"]), command["target"]))
        now_s[0] += 2 * setting.SET_TIMEOUT_S
        return accepted(command)

    now_s = [1000.0]
    monkeypatch.setattr(setting.time, "monotonic", lambda: now_s[0])
    it = a_setting(send)
    both = it.test([assignment("haGroupInhibit", "web", 1), assignment("haGroupFreeze", "db", 1)])
    loop = asyncio.new_event_loop()
    monkeypatch.setattr(loop, "time", lambda: now_s[0])
    status = loop.run_until_complete(it.commit(both, "noc", HOST))
    loop.close()
    assert status == (ErrorStatus.COMMIT_FAILED, 2)
    assert sent == [(Verb.INHIBIT, "web"), (Verb.PERMIT, "web")]
