"""Clients' datagrams: what goes out comes back, as another language would write it, and any octets are survived."""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasnmp import wire_clients as wire
from hasnmp.errors import WireError

KEY = b"k" * 32
NONCE = "00112233445566778899aabbccddeeff"
FIND = wire.Find("apps", NONCE, "bank", "postgres")
FOUND = wire.Found(
    "apps", NONCE, "bank", "primary-a", "postgres", "db", "primary-a", 12, 834, "running", 41, "192.0.2.100", 5432
)
MESSAGES: list[wire.Request | wire.Answer] = [
    FIND,
    wire.Challenge("apps", NONCE, "bank"),
    wire.Report("apps", NONCE, "bank", "5f3a.0123456789abcdef", "feed", False, "no data for 7 s: Grüße"),
    wire.Report("apps", NONCE, "bank", "5f3a.0123456789abcdef", "feed", True),
    FOUND,
    replace(FOUND, owner="", token=0, lease_ms=0, state="unknown", address="", port=0),
    replace(FOUND, address="2001:db8::100"),
    wire.Given("apps", NONCE, "bank", "primary-a", "5f3a.0123456789abcdef"),
    wire.Result("apps", NONCE, "bank", "primary-a", 10, "no service nfs; services: feed"),
    wire.Result("apps", NONCE, "bank", "primary-a", 0),
]
NAMES = st.from_regex(re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}", re.ASCII), fullmatch=True)


def read(octets: bytes) -> wire.Request | wire.Answer:
    envelope = wire.open_envelope(octets)
    assert envelope.signed_by((b"other" * 8, KEY)) == KEY
    kinds = ("find", "challenge", "report")
    return wire.request(envelope) if envelope.kind in kinds else wire.answer(envelope)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_there_and_back(message: wire.Request | wire.Answer) -> None:
    octets = wire.encode(message, KEY)
    assert read(octets) == message
    if isinstance(message, wire.Find | wire.Challenge | wire.Report):
        assert len(octets) == wire.REQUEST
    else:
        assert len(octets) <= wire.REQUEST


def test_the_form_is_what_the_document_says() -> None:
    """Written without this code, as another language would."""
    line = f"hasnmp-1 find apps {NONCE} bank postgres".encode()
    body = line + b" " * (512 - 64 - 1 - len(line)) + b"\n"
    octets = body + hmac.new(KEY, body, hashlib.sha256).hexdigest().encode()
    assert octets == wire.encode(FIND, KEY)
    body = f"hasnmp-1 found apps {NONCE} bank primary-a postgres db primary-a 12 834 running 41 192.0.2.100 5432\n".encode()
    assert wire.encode(FOUND, KEY) == body + hmac.new(KEY, body, hashlib.sha256).hexdigest().encode()


def test_no_answer_is_longer_than_a_request_whatever_it_says() -> None:
    name, text = "n" * 32, "é" * 500
    for answer in (
        wire.Found(name, NONCE, name, name, name, name, name, 2**63, 10**12, "stop-failed", 10**12, "2001:db8:" * 4 + "1:2:3", 65535),
        wire.Result(name, NONCE, name, name, 38, text),
    ):  # fmt: skip
        octets = wire.encode(answer, KEY)
        assert len(octets) <= wire.REQUEST
        read(octets)
    report = wire.Report(name, NONCE, name, "f" * 80, name, True, text)
    assert len(wire.encode(report, KEY)) == wire.REQUEST


def test_words_that_a_later_version_adds_are_left_alone() -> None:
    for message in (FIND, FOUND):
        octets = wire.encode(message, KEY)
        body = octets[:-64].rstrip() + b" more 17\n"
        assert read(body + wire.signature(KEY, body)) == message


def test_text_stays_on_its_line() -> None:
    said = read(wire.encode(wire.Result("apps", NONCE, "bank", "a", 1, "one\ntwo\0three\x1b[31m"), KEY))
    assert isinstance(said, wire.Result) and said.text == "one two three [31m"


@pytest.mark.parametrize("place", range(0, 512, 7))
def test_an_octet_changed_is_refused(place: int) -> None:
    octets = bytearray(wire.encode(FIND, KEY))
    octets[place] ^= 1
    try:
        envelope = wire.open_envelope(bytes(octets))
    except WireError:
        return
    assert envelope.signed_by((KEY,)) == b""


@pytest.mark.parametrize("length", [0, 1, 8, 63, 64, 65, 66, 100, 300, 511])
def test_cut_short_it_is_refused(length: int) -> None:
    octets = wire.encode(FIND, KEY)[:length]
    with pytest.raises(WireError):
        wire.open_envelope(octets, least=wire.REQUEST)
    try:
        assert wire.open_envelope(octets).signed_by((KEY,)) == b""
    except WireError as error:
        assert error.reason == "malformed"


def test_an_answer_is_no_request_and_a_request_no_answer() -> None:
    for message in MESSAGES:
        envelope = wire.open_envelope(wire.encode(message, KEY))
        asked = isinstance(message, wire.Find | wire.Challenge | wire.Report)
        with pytest.raises(WireError):
            (wire.answer if asked else wire.request)(envelope)


@pytest.mark.parametrize(
    "line",
    [
        f"find apps {NONCE[1:]} bank postgres", f"find apps {NONCE.upper()} bank postgres", f"find apps {NONCE} bank",
        f"find  {NONCE} bank postgres", f"find apps {NONCE} bank -", f"find apps {NONCE} bank pos/tgres",
        f"report apps {NONCE} bank 12.34 feed maybe x", f"report apps {NONCE} bank zz feed up", f"found apps {NONCE} bank a b c d",
        f"found apps {NONCE} bank a p db a -1 10 running 0 - 0", f"found apps {NONCE} bank a p db a 1 10 running 0 host 0",
        f"found apps {NONCE} bank a p db a {'9' * 20} 10 running 0 - 0", f"result apps {NONCE} bank a ok", "find", "",
    ],
)  # fmt: skip
def test_a_good_signature_over_another_form_is_refused(line: str) -> None:
    body = f"hasnmp-1 {line}".encode() + b"\n"
    try:
        envelope = wire.open_envelope(body + wire.signature(KEY, body))
    except WireError:
        return
    for reading in (wire.request, wire.answer):
        with pytest.raises(WireError) as caught:
            reading(envelope)
        assert caught.value.reason == "malformed"


def test_another_version_is_named_so() -> None:
    with pytest.raises(WireError) as caught:
        wire.open_envelope(b"hasnmp-2 find".ljust(511) + b"\n")
    assert caught.value.reason == "version"


@given(st.binary(max_size=1200))
def test_any_octets_are_survived(octets: bytes) -> None:
    survive(octets)


@given(st.text(max_size=300))
def test_any_signed_words_are_survived(text: str) -> None:
    body = b"hasnmp-1 " + text.encode(errors="replace") + b"\n"
    survive(body + wire.signature(KEY, body))


def survive(octets: bytes) -> None:
    try:
        envelope = wire.open_envelope(octets)
        for reading in (wire.request, wire.answer):
            try:
                message = reading(envelope)
            except WireError:
                continue
            assert read(wire.encode(message, KEY)) == message
    except WireError:
        pass


@given(key=NAMES, cluster=NAMES, name=NAMES, node=NAMES, text=st.text(max_size=400))
def test_any_names_and_texts_come_back(key: str, cluster: str, name: str, node: str, text: str) -> None:
    find = wire.Find(key, NONCE, cluster, name)
    assert read(wire.encode(find, KEY)) == find
    result = read(wire.encode(wire.Result(key, NONCE, cluster, node, 3, text), KEY))
    assert isinstance(result, wire.Result) and read(wire.encode(result, KEY)) == result
