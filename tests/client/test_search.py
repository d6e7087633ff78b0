"""What a client believes of the answers that it gets, and for how long."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest

from hasnmp import client as module
from hasnmp import wire_clients as wire
from hasnmp.client import Cluster, Question, Search, Sockets

KEY = b"k" * 32
CLUSTER = Cluster("bank", {"a": ("192.0.2.11", 5406), "b": ("192.0.2.12", 5406)}, "apps", KEY)
MS = 1_000_000


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    now = [1_000_000 * MS]
    monkeypatch.setattr(module, "now_ns", lambda: now[0])
    yield now


def found(datagram: bytes, **more: object) -> wire.Found:
    asked = wire.request(wire.open_envelope(datagram))
    said = wire.Found("apps", asked.nonce, "bank", "a", "db", "db", "a", 7, 800, "running", 10, "192.0.2.100", 5432)
    return replace(said, **more)  # type: ignore[arg-type]


def search(**more: object) -> tuple[Search, Question, Question]:
    made = Search(CLUSTER, "db", **{"floor": 0, **more})  # type: ignore[arg-type]
    return made, *made.questions  # type: ignore[return-value]


def test_the_holders_own_word_is_believed_for_its_lease_from_when_it_was_asked(clock: list[int]) -> None:
    look, a, _ = search()
    asked = look.ask(a)
    asked_ns = clock[0]
    clock[0] += 300 * MS  # on the way
    assert look.take(wire.encode(found(asked), KEY))
    place = look.best()
    assert place is not None and (place.node, place.host, place.port, place.token) == ("a", "192.0.2.100", 5432, 7)
    assert place.until_ns == asked_ns + int(800 * MS * 0.99)
    clock[0] = place.until_ns
    assert look.best() is None


def test_an_answer_that_came_too_late_is_not_believed(clock: list[int]) -> None:
    look, a, _ = search()
    asked = look.ask(a)
    clock[0] += 800 * MS
    assert look.take(wire.encode(found(asked), KEY)) and look.best() is None


def test_of_two_that_answered_the_higher_token_counts_in_either_order(clock: list[int]) -> None:
    for first, second in ((7, 8), (8, 7)):
        look, a, b = search()
        for question, token in ((a, first), (b, second)):
            look.take(wire.encode(found(look.ask(question), node=question.node, owner=question.node, token=token), KEY))
        place = look.best()
        assert place is not None and (place.token, place.node) == (8, "a" if first == 8 else "b")


def test_a_token_below_what_was_believed_is_of_a_former_owner(clock: list[int]) -> None:
    look, a, _ = search(floor=8)
    look.take(wire.encode(found(look.ask(a)), KEY))
    assert look.best() is None and "token 7, and 8 was seen before" in look.why()


@pytest.mark.parametrize(
    "more",
    [
        {"lease_ms": 0, "owner": "b"}, {"lease_ms": 0}, {"state": "unknown"}, {"state": "starting"}, {"state": "stopping"},
        {"age_ms": 2501}, {"node": "b"}, {"cluster": "other"}, {"name": "web"},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_not_believed(clock: list[int], more: dict[str, object]) -> None:
    look, a, _ = search()
    assert look.take(wire.encode(found(look.ask(a), **more), KEY)) and look.best() is None
    assert a.answered


def test_whether_it_still_holds_the_lease_is_another_question_than_how_the_service_is(clock: list[int]) -> None:
    look = Search(CLUSTER, "db", 7, only="a")
    [a] = look.questions
    look.take(wire.encode(found(look.ask(a), state="unknown", age_ms=9000), KEY))
    assert look.best() is not None


def test_an_answer_counts_once_and_only_to_its_own_question(clock: list[int]) -> None:
    look, a, b = search()
    asked = look.ask(a)
    answer = wire.encode(found(asked), KEY)
    other = Search(CLUSTER, "db", 0)
    other.ask(other.questions[0])
    assert not other.take(answer)
    look.ask(b)
    assert look.take(answer) and not look.take(answer)  # a replay
    assert not look.all_answered()


def test_the_answer_to_an_earlier_question_counts_from_that_one(clock: list[int]) -> None:
    look, a, _ = search()
    first = look.ask(a)
    asked_ns = clock[0]
    clock[0] += 500 * MS
    look.ask(a)
    look.take(wire.encode(found(first), KEY))
    place = look.best()
    assert place is not None and place.until_ns == asked_ns + int(800 * MS * 0.99)


def test_what_nobody_signed_is_not_looked_at(clock: list[int]) -> None:
    look, a, _ = search()
    asked = look.ask(a)
    good = wire.encode(found(asked), KEY)
    assert not look.take(wire.encode(found(asked), b"x" * 32))
    assert not look.take(good[:-1]) and not look.take(good[:-70]) and not look.take(b"") and not look.take(asked)
    assert not look.take(wire.encode(found(asked, key="other"), KEY))
    assert look.best() is None and look.take(good)


def test_the_clients_own_file_has_the_last_word_on_where_it_is(clock: list[int]) -> None:
    cluster = replace(CLUSTER, places={"db": ("127.0.0.9", 0)})
    for port, expected in ((0, 5432), (6000, 6000)):
        look = Search(cluster, "db", 0, port)
        look.take(wire.encode(found(look.ask(look.questions[0])), KEY))
        place = look.best()
        assert place is not None and (place.host, place.port) == ("127.0.0.9", expected)
    look = Search(CLUSTER, "db", 0)
    look.take(wire.encode(found(look.ask(look.questions[0]), address="", port=0), KEY))
    place = look.best()
    assert place is not None and place.host == "192.0.2.11"  # where the node was asked
    with pytest.raises(ValueError, match="port of db is not known"):
        module.address_of(place)


def test_a_program_with_a_thousand_open_files_hears_answers_too() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        node = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        node.bind(("127.0.0.1", 0))
        while stack.enter_context(open(os.devnull)).fileno() < 1024:
            pass
        sockets = Sockets()
        stack.callback(sockets.close)
        assert sockets.send(b"a question", node.getsockname()) == ""
        _, asker = node.recvfrom(100)
        node.sendto(b"an answer", asker)
        assert sockets.receive(10) == [b"an answer"]
