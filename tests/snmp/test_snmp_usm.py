"""USM and the engine's identity: keys as pysnmp makes them, every refusal as RFC 3414 section 3.2 orders them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pysnmp.proto.rfc1902 import OctetString
from pysnmp.proto.secmod.rfc3414 import localkey
from pysnmp.proto.secmod.rfc3826.priv import aes

from hasnmp.settings import SnmpUser
from hasnmp.snmp import auth, ber, identity, usm
from hasnmp.snmp.standard import COUNTER_NAMES, Counters
from hasnmp.snmp.usm import AUTH, MAX_BOOTS, NO_AUTH, PRIV, Engine, Incoming, Report
from tests.snmp.snmp_lab import GET, REPORT, Answer, a_pdu, sealed_by

ENGINE_ID = bytes.fromhex("80007ed905000102030405060708090a0b")
NOC = SnmpUser("noc", "sha256", "aes128", "operate", b"authentic-word", b"private-word")
PLAIN = SnmpUser("plain", "sha256", "", "read", b"authentic-word")


def an_engine(boots: int = 7, seconds: int = 1000) -> tuple[Engine, Counters]:
    counters = Counters()
    return Engine(ENGINE_ID, boots, lambda: seconds, (NOC, PLAIN), counters), counters


def test_keys_are_those_that_pysnmp_derives() -> None:
    key = auth.password_to_key(b"authentic-word")
    assert key == bytes(localkey.hash_passphrase(b"authentic-word", hashlib.sha256))
    assert auth.localize(key, ENGINE_ID) == bytes(localkey.localize_key(key, OctetString(ENGINE_ID), hashlib.sha256))


@given(st.binary(min_size=1, max_size=100))
@settings(deadline=None, max_examples=100)
def test_aes_is_what_pysnmp_decrypts(data: bytes) -> None:
    key = auth.localize(auth.password_to_key(NOC.priv_secret), ENGINE_ID)[:16]
    assert USER.cipher is not None
    sealed, salt = USER.cipher.encrypt(data, 7, 1000)
    assert USER.cipher.decrypt(sealed, 7, 1000, salt) == data
    assert aes.Aes().decrypt_data(OctetString(key), (7, 1000, OctetString(salt)), OctetString(sealed)) == data


USER = usm.User(NOC, ENGINE_ID)


def a_message(
    engine: Engine, *, name: bytes = b"noc", flags: int = 7, boots: int = 7, seconds: int = 1000, model: int = 3,
    engine_id: bytes = ENGINE_ID, digest: bytes | None = None, salt: bytes = bytes(8), scoped: bytes | None = None,
    max_size: int = 1500, digest_size: int = 24,
) -> bytes:  # fmt: skip
    """A v3 message from after its version, with any part of it other than it should be."""
    user = engine.users.get(name)
    plain = ber.encode(0x30, ber.encode(4, ENGINE_ID) + b"\4\0" + a_pdu(GET, [])) if scoped is None else scoped
    if flags & 2 and user is not None and user.level == PRIV:
        plain = ber.encode(4, sealed_by(user, plain, max(boots, 0), max(seconds, 0), salt[:8].ljust(8)))
    elif flags & 2:
        plain = ber.encode(4, plain)
    size = digest_size if flags & 1 else 0
    head = ber.encode(0x30, b"\2\1\5" + ber.encode_integer(max_size) + bytes((4, 1, flags)) + ber.encode_integer(model))
    before = ber.encode(4, engine_id) + ber.encode_integer(boots) + ber.encode_integer(seconds) + ber.encode(4, name)
    tail = ber.encode(4, salt if flags & 2 else b"")
    params = ber.encode(4, ber.encode(0x30, before + ber.encode(4, bytes(size)) + tail))
    whole = ber.encode(0x30, b"\2\1\3" + head + params + plain)
    at = len(whole) - len(plain) - len(tail) - size
    if size:
        right = user.digest(whole)[:size] if user is not None else bytes(size)
        whole = whole[:at] + (right if digest is None else digest) + whole[at + size :]
    return whole


def receive(engine: Engine, message: bytes) -> Incoming | None:
    start, end = ber.expect(message, 0, len(message), 0x30)
    return engine.receive(message, start + 3, end)


def test_a_good_message_comes_through_and_its_answer_too() -> None:
    engine, _ = an_engine()
    for name, flags, level in ((b"noc", 7, PRIV), (b"plain", 5, AUTH)):
        message = receive(engine, a_message(engine, name=name, flags=flags))
        assert message is not None and message.level == level and message.user is engine.users[name]
        assert (message.msg_id, message.max_size, message.reportable) == (5, 1500, True)
        again = receive(engine, engine.send(message, a_pdu(GET, []), level))
        assert again is not None and again.level == level


def test_a_level_below_the_users_own_comes_through_and_says_which_it_is() -> None:
    """The access check refuses it (RFC 3414 section 3.2 (5) asks only whether the user has the protocols)."""
    engine, counters = an_engine()
    for name, flags, level in ((b"noc", 5, AUTH), (b"noc", 4, NO_AUTH), (b"plain", 4, NO_AUTH)):
        message = receive(engine, a_message(engine, name=name, flags=flags))
        assert message is not None and message.level == level and message.user is engine.users[name]
        again = receive(engine, engine.send(message, a_pdu(GET, []), level))
        assert again is not None and (again.level, again.user) == (level, message.user)
        assert message.data[message.start :].startswith(b"\4\x11" + ENGINE_ID)
    assert not any(counters.value(name) for name in COUNTER_NAMES)
    with pytest.raises(Report):
        receive(engine, a_message(engine, flags=5, digest=bytes(24)))


REFUSED = {
    "discovery": ({"engine_id": b"", "name": b"", "flags": 4}, "usm_unknown_engines", NO_AUTH),
    "another engine": ({"engine_id": ENGINE_ID + b"x"}, "usm_unknown_engines", NO_AUTH),
    "unknown user": ({"name": b"nobody"}, "usm_unknown_users", NO_AUTH),
    "no user": ({"name": b"", "flags": 4}, "usm_unknown_users", NO_AUTH),
    "a user of authNoPriv with privacy": ({"name": b"plain", "flags": 7}, "usm_unsupported_levels", NO_AUTH),
    "wrong digest": ({"digest": bytes(24)}, "usm_wrong_digests", NO_AUTH),
    "digest of 12 octets": ({"digest_size": 12}, "usm_wrong_digests", NO_AUTH),
    "no digest": ({"digest_size": 0}, "usm_wrong_digests", NO_AUTH),
    "an earlier start": ({"boots": 6}, "usm_not_in_window", AUTH),
    "a later start": ({"boots": 8}, "usm_not_in_window", AUTH),
    "151 s late": ({"seconds": 849}, "usm_not_in_window", AUTH),
    "151 s early": ({"seconds": 1151}, "usm_not_in_window", AUTH),
    "salt of four octets": ({"salt": bytes(4)}, "usm_decryption_errors", NO_AUTH),
    "another privacy key": ({"scoped": b"\x77" * 40}, "usm_decryption_errors", NO_AUTH),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refusals_their_counters_and_the_level_of_their_reports(what: str) -> None:
    engine, counters = an_engine()
    change, counter, level = REFUSED[what]
    with pytest.raises(Report) as caught:
        receive(engine, a_message(engine, **change))  # type: ignore[arg-type]
    assert (caught.value.counter, caught.value.level) == (counter, level)
    assert [name for name in COUNTER_NAMES if counters.value(name)] == [counter]
    report = engine.report(caught.value)
    start, end = ber.expect(report, 0, len(report), 0x30)
    start, _ = ber.expect(report, start + 3, end, 0x30)
    for _ in range(2):
        _, start = ber.integer(report, start, end)
    flags, start = ber.octets(report, start, end)
    start, params_end = ber.expect(report, start + 3, end, 0x04)
    start, _ = ber.expect(report, start, params_end, 0x30)
    shown_id, start = ber.octets(report, start, params_end)
    boots, start = ber.integer(report, start, params_end)
    seconds, start = ber.integer(report, start, params_end)
    assert (shown_id, boots, seconds) == (ENGINE_ID, 7, 1000)
    name, start = ber.octets(report, start, params_end)
    digest, after = ber.octets(report, start, params_end)
    if level == AUTH:
        # A manager sets its clock by this one, so it must be able to believe it.
        assert (flags, name) == (b"\1", b"noc")
        assert engine.users[b"noc"].digest(report.replace(digest, bytes(24))) == digest
    else:
        assert (flags, name, digest) == (b"\0", b"noc" if counter == "usm_decryption_errors" else b"", b"")
    assert ber.octets(report, after, params_end) == (b"", params_end)
    start, end = ber.expect(report, params_end, end, 0x30)
    _, start = ber.octets(report, start, end)
    _, start = ber.octets(report, start, end)
    answer = Answer.of_pdu(report, start, end)
    assert (answer.tag, answer.values, answer.tags) == (REPORT, [1], [ber.COUNTER32])
    assert ber.encode_oid(answer.names[0]) == usm.REPORTS[counter]


@pytest.mark.parametrize("seconds", [850, 1150])
def test_the_time_window_is_150_seconds_to_both_sides(seconds: int) -> None:
    engine, _ = an_engine()
    assert receive(engine, a_message(engine, seconds=seconds)) is not None


def test_nobody_is_in_the_window_of_an_engine_whose_boots_are_at_their_end() -> None:
    engine, _ = an_engine(boots=MAX_BOOTS)
    with pytest.raises(Report, match="usm_not_in_window"):
        receive(engine, a_message(engine, boots=MAX_BOOTS))


def test_privacy_without_authentication_and_other_security_models_get_no_answer() -> None:
    engine, counters = an_engine()
    assert receive(engine, a_message(engine, flags=6)) is None
    assert counters.value("invalid_messages") == 1
    assert receive(engine, a_message(engine, model=4)) is None
    assert counters.value("unknown_models") == 1


@pytest.mark.parametrize(
    "change", [{"max_size": 483}, {"model": 0}, {"boots": -1}, {"seconds": -1}, {"name": b"n" * 33}]
)
def test_headers_out_of_their_ranges_are_no_messages(change: dict[str, int]) -> None:
    engine, _ = an_engine()
    change = {"flags": 4, **change}
    with pytest.raises(ber.BerError):
        receive(engine, a_message(engine, **change))  # type: ignore[arg-type]


def test_a_message_bears_the_time_that_it_was_sealed_with_whatever_another_thread_does() -> None:
    class Hasty(Engine):
        """Between any two steps of ours another thread sends something, a second later."""

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, (1001, ber.encode_integer(1001)) if name == "_said" else value)

    ours = Hasty(ENGINE_ID, 7, lambda: 1000, (NOC, PLAIN), Counters())
    message = ours.send(Incoming(1, 65507, False, PRIV, ours.users[b"noc"]), a_pdu(GET, []), PRIV)
    theirs, _ = an_engine()
    heard = receive(theirs, message)
    assert heard is not None and a_pdu(GET, []) in heard.data


def test_no_initialisation_vector_comes_twice() -> None:
    engine, _ = an_engine()
    message = receive(engine, a_message(engine))
    assert message is not None
    assert len({engine.send(message, a_pdu(GET, []), PRIV) for _ in range(100)}) == 100


# ----------------------------------------------------------------------------------------------------------- identity


def test_the_engine_id_stays_and_boots_count_every_start(tmp_path: Path) -> None:
    first = identity.start(str(tmp_path / "new"), "alpha")
    second = identity.start(str(tmp_path / "new"), "alpha")
    assert (first[1:], second[1:]) == ((1, ""), (2, "")) and first[0] == second[0]
    assert identity.start(str(tmp_path / "new"), "beta")[0] != first[0]
    assert first[0][:5] == bytes.fromhex("80007ed905") and 5 <= len(first[0]) <= 32


def test_a_copy_of_a_machine_has_another_engine_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = identity.start(str(tmp_path), "alpha")
    old = json.loads((tmp_path / "snmp-engine-alpha.json").read_text())
    monkeypatch.setattr(identity, "_MACHINE", (str(tmp_path / "machine-id"), str(tmp_path / "none")))
    (tmp_path / "machine-id").write_text("another\n")
    copied = identity.start(str(tmp_path), "alpha")
    assert copied[0] != first[0] and copied[1] == 1 and "copy" in copied[2]
    assert identity.start(str(tmp_path), "alpha") == (copied[0], 2, "")
    # What could not be read, then or now, tells nothing; and a file of a version that did not note the machine is believed.
    (tmp_path / "machine-id").unlink()
    assert identity.start(str(tmp_path), "alpha") == (copied[0], 3, "")
    del old["machine"]
    (tmp_path / "snmp-engine-alpha.json").write_text(json.dumps(old))
    assert identity.start(str(tmp_path), "alpha") == (first[0], 2, "")


def test_boots_stay_at_their_end(tmp_path: Path) -> None:
    path = tmp_path / "snmp-engine-alpha.json"
    path.write_text(json.dumps({"engine_id": ENGINE_ID.hex(), "boots": MAX_BOOTS - 1}))
    assert identity.start(str(tmp_path), "alpha") == (ENGINE_ID, MAX_BOOTS, "")
    assert identity.start(str(tmp_path), "alpha") == (ENGINE_ID, MAX_BOOTS, "")


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"engine_id": "00", "boots": 1}', '{"engine_id": "8000000000ff", "boots": -1}', "\0\0"]
)
def test_a_file_that_cannot_be_believed_gives_a_new_engine_id(tmp_path: Path, content: str) -> None:
    path = tmp_path / "snmp-engine-alpha.json"
    path.write_text(content)
    engine_id, boots, trouble = identity.start(str(tmp_path), "alpha")
    assert boots == 1 and str(path) in trouble and len(engine_id) == 17
    assert identity.start(str(tmp_path), "alpha") == (engine_id, 2, "")


def test_where_nothing_can_be_stored_every_start_has_another_engine_id(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    one, two = (identity.start(str(blocked), "alpha") for _ in range(2))
    assert one[0] != two[0] and one[1] == two[1] == 1 and one[2]
