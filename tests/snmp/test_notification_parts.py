"""The parts of notifications that need no receiver: the SNMPv1 form, the backlog's file, what outlives the agent, and
the engine of a receiver of SNMPv3 informs, with our own engine as that receiver."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from hasnmp.model import ALARMS, Kind, Severity
from hasnmp.settings import Receiver, SnmpUser
from hasnmp.snmp import ber
from hasnmp.snmp.backlog import SLACK, Backlog
from hasnmp.snmp.kept import Kept
from hasnmp.snmp.notification import (
    ALWAYS,
    FLOORS,
    INFORM,
    RESPONSE,
    SNMP_TRAP_ADDRESS,
    SNMP_TRAPS,
    Answer,
    Notification,
    encode_variables,
    pdu,
    rank,
    trap_v1,
)
from hasnmp.snmp.notifier import receiver_names
from hasnmp.snmp.peer_engine import Learned, PeerEngine
from hasnmp.snmp.standard import Counters
from hasnmp.snmp.told import Told
from hasnmp.snmp.usm import NO_AUTH, Engine, Incoming, Report
from tests.snmp.snmp_lab import an_event

ENTERPRISE = (1, 3, 6, 1, 4, 1, 9)


def v1_fields(of: Notification, address: bytes = b"\x0a\0\0\1") -> tuple[object, ...]:
    """enterprise, agent-addr, generic-trap, specific-trap, time-stamp of its SNMPv1 form."""
    octets = trap_v1(of, address)
    assert octets is not None
    at, end = ber.expect(octets, 0, len(octets), 0xA4)
    fields = []
    for _ in range(5):
        tag, at, stop = ber.tlv(octets, at, end)
        fields.append(ber.decode_value(tag, octets[at:stop]))
        at = stop
    assert ber.expect(octets, at, end, ber.SEQUENCE)[1] == end
    return tuple(fields)


@pytest.mark.parametrize(
    "oid, fields",
    [
        ((*SNMP_TRAPS, 1), (SNMP_TRAPS, 0, 0)),
        ((*SNMP_TRAPS, 5), (SNMP_TRAPS, 4, 0)),
        ((*SNMP_TRAPS, 7), (SNMP_TRAPS, 6, 7)),  # none of the six that SNMPv1 knows
        ((*ENTERPRISE, 0, 17), (ENTERPRISE, 6, 17)),
        ((*ENTERPRISE, 4, 17), ((*ENTERPRISE, 4), 6, 17)),  # RFC 3584 section 3.2 (1): no zero before the last
    ],
)
def test_the_numbers_of_the_snmpv1_form(oid: tuple[int, ...], fields: tuple[object, ...]) -> None:
    enterprise, address, generic, specific, ticks = v1_fields(Notification(0, oid, 4711, b""))
    assert (enterprise, generic, specific) == fields and (address, ticks) == (b"\x0a\0\0\1", 4711)


def test_an_address_among_the_variables_is_the_snmpv1_agents_and_a_counter64_has_no_snmpv1_form() -> None:
    foreign = encode_variables([(SNMP_TRAP_ADDRESS, ber.IPADDRESS, b"\x0a\0\0\2")])
    assert v1_fields(Notification(0, (*ENTERPRISE, 0, 1), 1, foreign))[1] == b"\x0a\0\0\2"
    wide = encode_variables([((*ENTERPRISE, 1), ber.COUNTER64, 2**40)])
    assert trap_v1(Notification(0, (*ENTERPRISE, 0, 1), 1, wide), bytes(4)) is None


def test_the_end_of_an_alarm_ranks_as_the_alarm_and_what_is_about_telling_is_always_told() -> None:
    for kind, (severity, clear) in ALARMS.items():
        raised = rank(an_event(1, kind, severity=severity))
        assert rank(an_event(2, clear, severity=Severity.CLEARED)) >= raised >= FLOORS["warning"]
    assert rank(an_event(3, Kind.ALIVE)) == rank(an_event(4, Kind.EVENTS_LOST, severity=Severity.WARNING)) == ALWAYS
    assert rank(an_event(5, Kind.ROLE_CHANGE)) == FLOORS["info"]


def test_receivers_names_are_unique_short_and_the_same_in_another_order() -> None:
    long = "[2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff]:65535"
    given = [
        Receiver("192.0.2.50:162", "3", "noc", type="inform"), Receiver("192.0.2.50:162", "2c"),
        Receiver(long, "3", "noc"), Receiver(long, "3", "other"), Receiver(long, "1"),
    ]  # fmt: skip
    names = receiver_names(given)
    assert names[:2] == ["192.0.2.50:162/3/inform", "192.0.2.50:162/2c/trap"]
    assert len(set(names)) == 5 and all(1 <= len(name) <= 32 for name in names)
    assert receiver_names(given[::-1]) == names[::-1]
    assert len(set(receiver_names([given[0]] * 32))) == 32
    # Two at one address: neither has the plain name, or it would change hands with their order.
    two = [Receiver("192.0.2.50:162", "3", "noc"), Receiver("192.0.2.50:162", "3", "other")]
    assert receiver_names(two) == receiver_names(two[::-1])[::-1] and "192.0.2.50:162/3/trap" not in receiver_names(two)
    named = [replace(two[0], name="console"), two[1]]
    assert receiver_names(named)[0] == "console" and receiver_names(named[::-1])[1] == "console"


# ------------------------------------------------------------------------------------------------------- the backlog

A, B = "a", "b"


def compact(log: Backlog, live: list[Notification]) -> None:
    log.end_compaction(log.begin_compaction(live)())


def fails(error: OSError) -> None:
    raise AssertionError(error)


def a_notification(text: str = "") -> Notification:
    return Notification(0, (*ENTERPRISE, 0, 1), 5, encode_variables([((*ENTERPRISE, 1), ber.OCTETS, text.encode())]), 3)


def test_the_backlog_gives_back_what_was_put_in(tmp_path: Path) -> None:
    path = tmp_path / "backlog"
    log = Backlog(path, [A, B], fails)
    put = [log.add(a_notification(str(n))) for n in range(5)]
    log.record(A, 3, 0)
    log.record(B, 2, 7)
    # Not closed: killed.
    again = Backlog(path, [A, B, "new"], fails)
    assert list(again.entries.values()) == put and [n.number for n in put] == [1, 2, 3, 4, 5]
    assert (again.position(A), again.position(B), again.position("new")) == ((3, 0), (2, 7), (5, 0))
    assert again.add(a_notification()).number == 6


def test_a_line_that_was_cut_short_costs_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "backlog"
    log = Backlog(path, [A], fails)
    first, second = log.add(a_notification("1")), log.add(a_notification("2"))
    for cut in range(1, 40):
        octets = path.read_bytes()
        path.write_bytes(octets[: len(octets) - cut])
        again = Backlog(path, [A], fails)
        third = again.add(a_notification("3"))
        kept = Backlog(path, [A], fails).entries
        assert kept[first.number] == first and kept[third.number] == third
        path.write_bytes(octets)
    path.write_bytes(os.urandom(1000) + b"\n" + path.read_bytes() + b'{"n": "x"}\n[]\n{"r": 1}\n')
    assert Backlog(path, [A], fails).entries == {first.number: first, second.number: second}


@pytest.mark.parametrize(
    "change",
    [{"v": "AAAA"}, {"v": "MAIEAAUA"}, {"v": "MAcGAysGAQUA"}, {"t": -1}, {"t": 1 << 32}, {"t": 1e999}, {"o": [1]}, {"o": []},
     {"o": [1, 3, -6]}, {"o": [1, 3, 1 << 40]}],
    ids=str,
)  # fmt: skip
def test_an_entry_that_cannot_be_sent_is_left_out(change: dict[str, object], tmp_path: Path) -> None:
    """Who finds it later would fail by it, at each start anew."""
    path = tmp_path / "backlog"
    log = Backlog(path, [A], fails)
    first, _, third = (log.add(a_notification(str(n))) for n in range(3))
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    lines[2].update(change)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert lines[2]["n"] == 2
    assert Backlog(path, [A], fails).entries == {first.number: first, third.number: third}


def test_the_backlog_is_written_anew_without_what_is_over_and_its_numbers_go_on(tmp_path: Path) -> None:
    path = tmp_path / "backlog"
    log = Backlog(path, [A], fails)
    added = [log.add(a_notification(str(n))) for n in range(SLACK + 10)]
    assert log.wants_compaction(2) and not log.wants_compaction(SLACK)
    log.record(A, added[-3].number, 0)
    compact(log, added[-2:])
    size = path.stat().st_size
    assert not log.wants_compaction(0)
    later = log.add(a_notification("later"))
    log.close()
    again = Backlog(path, [A], fails)
    assert list(again.entries.values()) == [*added[-2:], later] and size < 1000
    assert path.stat().st_mode & 0o777 == 0o600  # what services failed and why is not for everybody
    compact(again, [])
    assert Backlog(path, [A], fails).last == later.number


def test_what_comes_while_the_backlog_is_written_anew_is_in_the_old_file_and_in_the_new(tmp_path: Path) -> None:
    path = tmp_path / "backlog"
    log = Backlog(path, [A], fails)
    added = [log.add(a_notification(str(n))) for n in range(SLACK + 10)]
    log.record(A, added[-2].number, 0)
    write = log.begin_compaction(added[-1:])
    assert not log.wants_compaction(0), "it is under way"
    meanwhile = log.add(a_notification("meanwhile"))
    assert write()
    later = log.add(a_notification("later"))
    log.record(A, added[-1].number, 0)
    # Killed here, the old file has it all; killed after the end, the new one.
    killed = Backlog(path, [A], fails)
    assert list(killed.entries.values())[-3:] == [added[-1], meanwhile, later]
    assert killed.position(A) == (added[-1].number, 0)
    killed.close()
    log.end_compaction(True)
    log.add(a_notification("last"))
    assert path.stat().st_size < 2000
    again = Backlog(path, [A], fails)
    assert [n.variables for n in again.entries.values()][1:] == [
        meanwhile.variables, later.variables, a_notification("last").variables,
    ]  # fmt: skip
    assert again.position(A) == (added[-1].number, 0)


def test_a_backlog_that_cannot_be_written_anew_goes_on_as_it_is(tmp_path: Path) -> None:
    said: list[OSError] = []
    path = tmp_path / "backlog"
    log = Backlog(path, [A], said.append)
    added = [log.add(a_notification(str(n))) for n in range(SLACK + 10)]
    (tmp_path / "backlog.new").mkdir()
    compact(log, added[-1:])
    assert len(said) == 1 and not log.wants_compaction(0), (
        "tried again for each notification it would cost each of them"
    )
    later = log.add(a_notification("later"))
    log.close()
    assert list(Backlog(path, [A], fails).entries.values()) == [*added, later]
    log.end_compaction(True)  # too late: it is closed
    assert list(Backlog(path, [A], fails).entries.values()) == [*added, later]


def test_a_backlog_that_cannot_be_written_is_said_once_and_goes_on(tmp_path: Path) -> None:
    said: list[OSError] = []
    (tmp_path / "file").write_text("")
    log = Backlog(tmp_path / "file" / "backlog", [A], said.append)
    assert [log.add(a_notification()).number for _ in range(3)] == [1, 2, 3]
    log.record(A, 2, 0)
    compact(log, [])
    log.close()
    assert len(said) == 1 and log.position(A) == (2, 0)


# --------------------------------------------------------------------------------------------- what outlives the agent


def test_counters_and_uptime_go_on_over_a_restart_and_begin_anew_with_the_daemon(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    first = Kept(path, ["a", "b", "c"], 1000, warm=False)
    part = first.part(["b", "c"])
    part[0] += 5
    part[1] += 2**40
    second = Kept(path, ["new", "c", "b"], 5000, warm=True)
    assert (second.started_ns, second.goes_on) == (1000, True)
    assert list(second.part(["new", "c", "b"])) == [0, 2**40, 5]
    third = Kept(path, ["new", "c", "b"], 6000, warm=False)
    assert (third.started_ns, third.goes_on, list(third.part(["new", "c", "b"]))) == (6000, False, [0, 0, 0])


@pytest.mark.parametrize("octets", [b"", b"\xff" * 64, b"\x02" + bytes(7) + b"{}", b"\x04" + bytes(7) + b"null"])
def test_a_broken_file_of_counters_is_as_none(octets: bytes, tmp_path: Path) -> None:
    path = tmp_path / "kept"
    path.write_bytes(octets)
    kept = Kept(path, ["a"], 1000, warm=True)
    assert (kept.started_ns, kept.goes_on, list(kept.part(["a"]))) == (1000, False, [0])


def test_counters_of_another_boot_and_of_a_later_moment_are_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    Kept(path, ["a"], 2000, warm=False).part(["a"])[0] = 7
    assert not Kept(path, ["a"], 1999, warm=True).goes_on
    Kept(path, ["a"], 2000, warm=False)
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
    path.write_bytes(path.read_bytes().replace(boot_id, boot_id[::-1]))
    assert not Kept(path, ["a"], 3000, warm=True).goes_on
    unwritable = Kept(tmp_path / "none" / "kept", ["a"], 1, warm=True)
    unwritable.part(["a"])[0] += 1
    assert list(unwritable.part(["a"])) == [1]


def test_the_mark_of_what_was_told_survives_a_kill_and_a_version(tmp_path: Path) -> None:
    path = tmp_path / "told"
    path.write_bytes(b"0000000042\n")  # as the first version wrote it
    told = Told(path)
    assert (told.last, told.held, told.dropped) == (42, (), 0)
    told.note(1000, range(900, 1000), 12)
    told.note(1001, [1000], 3)  # a shorter line over a longer one
    again = Told(path)
    assert (again.last, again.held, again.dropped) == (1001, (1000,), 3)
    path.write_bytes(b"{nonsense\n")
    assert Told(path).last == 0


# ----------------------------------------------------------------------------------------- the engine of a receiver

USER = SnmpUser("noc", "sha256", "aes128", "read", b"authentic-word", b"private-word")


class Receiving:
    """A receiver of informs: an engine whose clock and boots the test sets."""

    def __init__(self, engine_id: bytes = b"\x80\0\0\0\x05receiver", user: SnmpUser = USER) -> None:
        self.now_s = 100
        self.engine = Engine(engine_id, 7, lambda: self.now_s, (user,), Counters())

    def answer(self, data: bytes) -> bytes:
        """A Response to an inform, or the Report that it brings about."""
        at, end = ber.expect(data, 0, len(data), ber.SEQUENCE)
        _, at = ber.integer(data, at, end)
        try:
            message = self.engine.receive(data, at, end)
        except Report as report:
            return self.engine.report(report)
        assert message is not None
        octets = message.data[message.start : message.stop]
        at = octets.index(b"\xa6")
        return self.engine.send(message, b"\xa2" + octets[at + 1 :], message.level)


def a_peer(clock: list[float]) -> PeerEngine:
    return PeerEngine(USER, b"\x80\0\0\0\x05sender", lambda: clock[0])


def heard(peer: PeerEngine, data: bytes) -> tuple[int, Answer | Learned | str]:
    return peer.take(data, range(100))  # it was asked all that


INFORMING = pdu(INFORM, 4, Notification(0, (*ENTERPRISE, 0, 1), 5, b""))


def known(receiver: Receiving, clock: list[float]) -> PeerEngine:
    peer = a_peer(clock)
    assert heard(peer, receiver.answer(peer.discovery(3))) == (3, Learned.ENGINE)
    number, answer = heard(peer, receiver.answer(peer.message(4, INFORMING)))
    assert number == 4 and isinstance(answer, Answer) and (answer.tag, answer.number, answer.status) == (RESPONSE, 4, 0)
    return peer


def test_a_receivers_engine_is_discovered_and_its_time_followed() -> None:
    clock, receiver = [0.0], Receiving()
    peer = known(receiver, clock)
    clock[0] += 10_000
    receiver.now_s += 10_000
    assert isinstance(heard(peer, receiver.answer(peer.message(5, INFORMING)))[1], Answer)
    receiver.engine.boots, receiver.now_s = 8, 3  # it was restarted
    assert heard(peer, receiver.answer(peer.message(6, INFORMING))) == (6, Learned.TIME)
    assert isinstance(heard(peer, receiver.answer(peer.message(7, INFORMING)))[1], Answer)
    other = Receiving(b"\x80\0\0\0\x05installed anew")
    assert heard(peer, other.answer(peer.message(8, INFORMING))) == (8, Learned.ENGINE)
    assert isinstance(heard(peer, other.answer(peer.message(9, INFORMING)))[1], Answer)


def test_a_guessed_time_is_corrected_by_an_authentic_word_and_a_proven_one_goes_forward_only() -> None:
    clock, receiver, liar = [0.0], Receiving(), Receiving()
    liar.engine.boots, liar.now_s = 2**31 - 2, 2**31 - 2
    peer = a_peer(clock)
    assert heard(peer, liar.answer(peer.discovery(3))) == (3, Learned.ENGINE)
    assert heard(peer, receiver.answer(peer.message(4, INFORMING))) == (4, Learned.TIME)
    assert isinstance(heard(peer, receiver.answer(peer.message(5, INFORMING)))[1], Answer)
    old = receiver.answer(peer.message(6, INFORMING))
    receiver.engine.boots = 8
    assert heard(peer, receiver.answer(peer.message(7, INFORMING))) == (7, Learned.TIME)
    with pytest.raises(ber.BerError):
        heard(peer, old)  # from the life before


def test_a_report_that_answers_nothing_teaches_nothing() -> None:
    clock, receiver = [0.0], Receiving()
    peer = known(receiver, clock)
    forger = Receiving(b"\x80\0\0\0\x05forger")
    report = forger.answer(peer.discovery(42))
    number, said = peer.take(report, {5})
    assert number == 42 and isinstance(said, str)
    assert isinstance(peer.take(receiver.answer(peer.message(5, INFORMING)), {5})[1], Answer)  # still of its engine
    assert peer.take(report, {42}) == (42, Learned.ENGINE)


def test_only_an_authentic_answer_acknowledges() -> None:
    clock, receiver = [0.0], Receiving()
    peer = known(receiver, clock)
    good = receiver.answer(peer.message(5, INFORMING))
    plain = receiver.engine.send(
        Incoming(5, 65507, False, NO_AUTH, receiver.engine.users[b"noc"]), b"\xa2" + INFORMING[1:], NO_AUTH
    )
    stranger = Receiving(user=replace(USER, auth_secret=b"another-word"))
    forged = stranger.engine.send(
        Incoming(5, 65507, False, 3, stranger.engine.users[b"noc"]), b"\xa2" + INFORMING[1:], 3
    )
    lower = receiver.engine.send(
        Incoming(5, 65507, False, 2, receiver.engine.users[b"noc"]), b"\xa2" + INFORMING[1:], 2
    )
    for octets in (plain, forged, lower, good[:-1], b"", b"\x30\x00", good[:40] + bytes(len(good) - 40)):
        with pytest.raises(ber.BerError):
            heard(peer, octets)
    assert isinstance(heard(peer, good)[1], Answer)


def test_what_a_receiver_has_against_us_is_said_and_changes_nothing() -> None:
    clock, receiver = [0.0], Receiving()
    peer = known(receiver, clock)
    unknown = Receiving(user=replace(USER, name="other"))
    assert heard(peer, unknown.answer(peer.message(5, INFORMING))) == (5, "it does not know the user")
    other_key = Receiving(user=replace(USER, auth_secret=b"another-word"))
    said = heard(peer, other_key.answer(peer.message(6, INFORMING)))
    assert said == (6, "it has another authentication key or protocol for the user")
    assert isinstance(heard(peer, receiver.answer(peer.message(7, INFORMING)))[1], Answer)
