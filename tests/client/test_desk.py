"""What a node answers: to whom, what of a lease and how old, and that a report counts once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from hasnmp import wire_clients as wire
from hasnmp.errors import Code
from hasnmp.model import ServiceState
from hasnmp.runtime import clients, desk
from hasnmp.runtime.lease_board import LeaseBoard
from tests.client.desk_lab import APPS, CONFIG, FEED, MS, OLD, Lab, nonce, opened

# ---------------------------------------------------------------------------------------------------- who runs what


def test_the_holder_says_so_with_what_is_left() -> None:
    lab = Lab()
    lab.hold(900)
    found = lab.find()
    assert (found.node, found.owner, found.token, found.lease_ms, found.state) == ("a", "a", 7, 900, "running")
    assert (found.group, found.address, found.port, found.age_ms) == ("db", "192.0.2.100", 5432, 0)
    lab.now_ns += 300 * MS
    found = lab.find()
    assert (found.lease_ms, found.age_ms) == (600, 300)
    assert lab.find("db").state == "running" and lab.find("db").port == 0  # a group by its own name


def test_a_lease_that_ran_out_or_was_wiped_out_is_none() -> None:
    lab = Lab()
    lab.hold(900)
    lab.now_ns += 900 * MS
    found = lab.find()
    assert (found.lease_ms, found.owner) == (0, "")  # although the picture still says that a has it
    lab.hold(900)
    lab.board.show("db", 0, 0)
    assert lab.find().lease_ms == 0


def test_who_does_not_hold_it_tells_whom_it_takes_for_the_owner() -> None:
    lab = Lab()
    lab.picture("b", 9)
    found = lab.find()
    assert (found.node, found.owner, found.token, found.lease_ms) == ("a", "b", 9, 0)


def test_a_picture_of_the_lease_before_says_nothing_of_this_one() -> None:
    lab = Lab()
    lab.hold(900, token=8)
    assert lab.find().state == "unknown"  # the picture is of token 7
    lab.picture("b", 8)
    assert (lab.find().state, lab.find().owner) == ("unknown", "a")
    lab.picture("a", 8, ServiceState.STARTING)
    assert lab.find().state == "starting"


def test_an_old_picture_vouches_for_no_state() -> None:
    lab = Lab()
    lab.now_ns += (desk.STALE_MS + 1) * MS
    lab.hold(900)
    found = lab.find()
    assert (found.state, found.age_ms, found.lease_ms) == ("unknown", desk.STALE_MS + 1, 900)
    lab.board.show("db", 0, 0)
    assert lab.find().owner == ""


def test_what_is_not_there_is_refused_in_words() -> None:
    answer = Lab().ask(wire.Find("apps", nonce(), "bank", "nfs"))
    assert (
        isinstance(answer, wire.Result)
        and answer.code == Code.NOT_FOUND
        and "no service and no group nfs" in answer.text
    )
    answer = Lab().ask(wire.Find("apps", nonce(), "other", "postgres"))
    assert isinstance(answer, wire.Result) and "this is cluster bank" in answer.text


# -------------------------------------------------------------------------------------------------------- who asks


def test_every_key_of_a_name_verifies_and_answers_as_it_was_asked() -> None:
    lab = Lab()
    for key in (APPS, OLD):
        assert isinstance(lab.ask(wire.Find("apps", nonce(), "bank", "db"), key), wire.Found)


@pytest.mark.parametrize(
    ("name", "key", "host"),
    [
        ("apps", FEED, "192.0.2.50"),  # another one's key
        ("nobody", APPS, "192.0.2.50"),
        ("feeder", FEED, "198.51.100.7"),  # not from there
        ("feeder", FEED, "2001:db9::1"),
    ],
)
def test_strangers_get_no_answer(name: str, key: bytes, host: str) -> None:
    lab = Lab()
    assert lab.raw(wire.encode(wire.Find(name, nonce(), "bank", "db"), key), host) == []
    assert lab.desk.counters.signature == 1
    assert lab.raw(wire.encode(wire.Find("feeder", nonce(), "bank", "db"), FEED), "2001:db8::7")


def test_what_is_refused_is_told_in_the_log_once_a_minute() -> None:
    process = clients.Clients(CONFIG, "a", LeaseBoard())
    asked = [(name, host) for name in ("apps", "nobody", "feeder") for host in ("192.0.2.50", "198.51.100.7")]
    told: list[str] = []
    with capture_logs() as log:
        process.tell_refused(0.0)
        for number, (name, host) in enumerate(asked):
            process.desk.handle(wire.encode(wire.Find(name, nonce(), "bank", "db"), b"x" * 32), host, bytes)
            told.append(process.desk.refused)
            process.tell_refused(float(number))
        process.desk.handle(b"x", "192.0.2.50", bytes)
        process.tell_refused(clients.TELL_S)
        process.tell_refused(2 * clients.TELL_S)
    assert [(line["event"], line["signature"], line["malformed"]) for line in log] == [
        ("requests_refused", 1, 0), ("requests_refused", len(asked) - 1, 1),
    ]  # fmt: skip
    assert [told[0], told[2], told[5]] == [
        "192.0.2.50, key 'apps': the signature is wrong",
        "192.0.2.50, key 'nobody': no key of this name",
        "198.51.100.7, key 'feeder': it may not be used from there",
    ]


def test_a_short_request_gets_no_answer_and_no_answer_is_longer() -> None:
    lab = Lab()
    body = f"hasnmp-1 find apps {nonce()} bank db\n".encode()
    assert lab.raw(body + wire.signature(APPS, body)) == []
    assert lab.desk.counters.malformed == 1
    request = wire.encode(wire.Find("apps", nonce(), "bank", "db"), APPS)
    assert all(len(answer) <= len(request) for answer in lab.raw(request))


def test_an_answer_sent_to_us_is_not_answered() -> None:
    lab = Lab()
    body = wire.encode(wire.Given("apps", nonce(), "bank", "b", "12345678.0"), APPS)[:-65].ljust(447) + b"\n"
    assert lab.raw(body + wire.signature(APPS, body)) == []


def test_a_flood_of_wrong_signatures_is_looked_at_only_so_often_and_known_askers_still_are() -> None:
    lab = Lab()
    good, bad = (wire.encode(wire.Find("apps", nonce(), "bank", "db"), key) for key in (APPS, FEED))
    assert lab.raw(good, "192.0.2.1")
    for _ in range(desk.REFUSED_A_SECOND + 50):
        assert lab.raw(bad, "192.0.2.2") == []
    assert (lab.desk.counters.signature, lab.desk.counters.dropped) == (desk.REFUSED_A_SECOND, 50)
    assert lab.raw(good, "192.0.2.1") and not lab.raw(good, "192.0.2.3")
    lab.now_ns += 1_000 * MS
    assert lab.raw(good, "192.0.2.3")


@given(st.binary(max_size=1100), st.sampled_from(["192.0.2.50", "2001:db8::1", "fe80::1%eth0"]))
def test_any_octets_are_survived_and_not_answered(octets: bytes, host: str) -> None:
    lab = Lab()
    assert lab.raw(octets, host) == []
    assert lab.raw((b"hasnmp-1 find apps " + octets)[:1023].ljust(600) + b"\n" + b"0" * 64, host) == []


# --------------------------------------------------------------------------------------------------------- reports


def report(lab: Lab, given: wire.Given, service: str = "feed", up: bool = True) -> bytes:
    return wire.encode(wire.Report(given.key, given.nonce, "bank", given.challenge, service, up, "all is well"), FEED)


def results(octets: list[bytes]) -> list[int]:
    answers = [opened(each, FEED) for each in octets]
    return [answer.code for answer in answers if isinstance(answer, wire.Result)]


def test_a_report_reaches_the_engine_and_its_answer_the_reporter() -> None:
    lab = Lab()
    assert lab.raw(report(lab, lab.challenge())) == []
    [(told, host, done)] = lab.reports
    assert (told.service, told.up, told.text, host) == ("feed", True, "all is well", "192.0.2.50")
    before = len(lab.sent)
    done(0, "")
    assert results(lab.sent[before:]) == [0]


def test_a_report_replayed_counts_for_nothing() -> None:
    lab = Lab()
    octets = report(lab, lab.challenge())
    lab.raw(octets)
    assert lab.raw(octets) == []  # while the engine is asked
    lab.reports[0][2](0, "")
    assert results(lab.raw(octets)) == [0]  # the first one's answer again, for whoever did not get it
    lab.now_ns += (desk.CHALLENGE_MS + 1) * MS
    assert results(lab.raw(octets)) == [Code.TIMED_OUT]
    assert len(lab.reports) == 1


def test_another_report_by_the_same_challenge_is_not_said_to_be_taken() -> None:
    lab = Lab()
    given = lab.challenge()
    lab.raw(report(lab, given))
    lab.reports[0][2](0, "")
    assert results(lab.raw(report(lab, given, up=False))) == [Code.NOT_ALLOWED]
    assert results(lab.raw(report(lab, given))) == [0] and len(lab.reports) == 1


def test_a_replayed_report_counts_for_nothing_after_many_others() -> None:
    lab = Lab()
    first = report(lab, lab.challenge())
    lab.raw(first)
    for _ in range(50):
        lab.now_ns += 300 * MS
        lab.raw(report(lab, lab.challenge()))
    assert len(lab.reports) == 51
    assert results(lab.raw(first)) == [Code.TIMED_OUT] and len(lab.reports) == 51


def test_a_challenge_is_good_for_its_asker_its_node_and_its_time() -> None:
    lab, other = Lab(), Lab()
    given = lab.challenge()
    assert results(other.raw(report(other, given))) == [Code.NOT_ALLOWED]  # another process gave it
    octets = wire.encode(wire.Report("feeder", nonce(), "bank", given.challenge, "feed", True), FEED)
    assert results(lab.raw(octets)) == [Code.NOT_ALLOWED]  # another one's nonce
    later = f"{int(given.challenge.partition('.')[0], 16) + 60_000:x}.{given.challenge.partition('.')[2]}"
    octets = wire.encode(wire.Report("feeder", given.nonce, "bank", later, "feed", True), FEED)
    assert results(lab.raw(octets)) == [Code.NOT_ALLOWED]  # a time of its own
    lab.now_ns += desk.CHALLENGE_MS * MS
    assert lab.raw(report(lab, given)) == [] and len(lab.reports) == 1


def test_a_key_reports_on_its_own_services_only() -> None:
    lab = Lab()
    assert results(lab.raw(report(lab, lab.challenge(), "feed2"))) == [Code.NOT_ALLOWED]
    given = lab.ask(wire.Challenge("apps", nonce(), "bank"))
    assert isinstance(given, wire.Given)
    octets = wire.encode(wire.Report("apps", given.nonce, "bank", given.challenge, "feed", True), APPS)
    [answer] = lab.raw(octets)
    said = opened(answer, APPS)
    assert isinstance(said, wire.Result) and said.code == Code.NOT_ALLOWED and "clients.keys.apps.report" in said.text
    assert lab.reports == []


def test_a_flood_of_reports_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "USED", 5)
    lab = Lab()
    for _ in range(5):
        assert lab.raw(report(lab, lab.challenge())) == []
    assert results(lab.raw(report(lab, lab.challenge()))) == [Code.BUSY]
    lab.now_ns += (desk.CHALLENGE_MS + 1) * MS
    assert lab.raw(report(lab, lab.challenge())) == [] and len(lab.reports) == 6
