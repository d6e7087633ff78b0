"""USM's algorithms: the vectors of their standards, pysnmp's word, and every pair of them asked for by Net-SNMP's tools."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pysnmp.proto.rfc1902 import OctetString

from hasnmp.settings import SnmpUser
from hasnmp.snmp import auth
from tests.snmp.snmp_lab import AUTH, PRIV, SYS_UP_TIME, a_config, running

ENGINE = bytes(11) + b"\2"


@pytest.mark.parametrize(
    ("protocol", "secret", "key", "localized"),
    [  # RFC 3414 A.3.1, A.3.2; the new keys of A.5.1, A.5.2
        ("md5", b"maplesyrup", "9faf3283884e92834ebc9847d8edd963", "526f5eed9fcce26f8964c2930787d82b"),
        (
            "sha", b"maplesyrup", "9fb5cc0381497b3793528939ff788d5d79145211",
            "6695febc9288e36282235fc7151f128497b38f3f",
        ),
        ("md5", b"newsyrup", "", "87021d7bd9d101ba05ea6e3bf9d9bd4a"),
        ("sha", b"newsyrup", "", "78e2dcce79d59403b58c1bbaa5bff46391f1cd25"),
    ],
)  # fmt: skip
def test_keys_of_rfc_3414(protocol: str, secret: bytes, key: str, localized: str) -> None:
    made = auth.password_to_key(secret, protocol)
    assert made.hex() == key or not key
    assert auth.localize(made, ENGINE, protocol).hex() == localized


@pytest.mark.parametrize(
    ("protocol", "key", "data", "digest"),
    [
        # RFC 2202, test cases 1
        ("md5", b"\x0b" * 16, b"Hi There", "9294727a3638bb1c13f48ef8158bfc9d"),
        ("sha", b"\x0b" * 20, b"Hi There", "b617318655057264e28bc0b6fb378c8ef146be00"),
        # RFC 4231, test cases 1 and 2, which RFC 7860 section 4.1 points to
        ("sha224", b"\x0b" * 20, b"Hi There", "896fb1128abbdf196832107cd49df33f47b4b1169912ba4f53684b22"),
        ("sha256", b"\x0b" * 20, b"Hi There", "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"),
        (
            "sha384", b"\x0b" * 20, b"Hi There",
            "afd03944d84895626b0825f4ab46907f15f9dadbe4101ec682aa034c7cebc59cfaea9ea9076ede7f4af152e8b2fa9cb6",
        ),
        (
            "sha512", b"\x0b" * 20, b"Hi There",
            "87aa7cdea5ef619d4ff0b4241a1d6cb02379f4e2ce4ec2787ad0b30545e17cdedaa833b7d6b8a702038b274eaea3f4e4"
            "be9d914eeb61f1702e696c203a126854",
        ),
        (
            "sha256", b"Jefe", b"what do ya want for nothing?",
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
        ),
    ],
)  # fmt: skip
def test_digests_are_hmac_cut_to_their_length(protocol: str, key: bytes, data: bytes, digest: str) -> None:
    made = auth.Digest(key, protocol)
    assert [made(data), made(data)] == [bytes.fromhex(digest)[: made.size]] * 2
    sizes = {
        "md5": 12,
        "sha": 12,
        "sha224": 16,
        "sha256": 24,
        "sha384": 32,
        "sha512": 48,
    }  # RFC 3414 6, 7; RFC 7860 4.1
    assert made.size == sizes[protocol]


PLAIN = bytes.fromhex(
    "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e5130c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
)


@pytest.mark.parametrize(
    ("key", "sealed"),
    [  # NIST SP 800-38A, F.3.13, F.3.15 and F.3.17
        (
            "2b7e151628aed2a6abf7158809cf4f3c",
            "3b3fd92eb72dad20333449f8e83cfb4ac8a64537a0b3a93fcde3cdad9f1ce58b26751f67a3cbb140b1808cf187a4f4dfc04b05357c5d1c0eeac4c66f9ff7f2e6",
        ),
        (
            "8e73b0f7da0e6452c810f32b809079e562f8ead2522c6b7b",
            "cdc80d6fddf18cab34c25909c99a417467ce7f7f81173621961a2b70171d3d7a2e1e8a1dd59b88b1c8e60fed1efac4c9c05f9f9ca9834fa042ae8fba584b09ff",
        ),
        (
            "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4",
            "dc7e84bfda79164b7ecd8486985d386039ffed143b28b1c832113c6331e5407bdf10132415e54b92a13ed0a8267ae2f975a385741ab9cef82031623d55b1e471",
        ),
    ],
)  # fmt: skip
def test_aes_of_every_length(key: str, sealed: str) -> None:
    aes = auth.Aes(bytes.fromhex(key))
    vector = bytes(range(16))
    boots, seconds = int.from_bytes(vector[:4], "big"), int.from_bytes(vector[4:8], "big")
    aes._salt = int.from_bytes(vector[8:], "big") - 1
    for _ in range(2):  # whatever was encrypted before
        for size in (64, 17, 1):
            assert aes.decrypt(bytes.fromhex(sealed)[:size], boots, seconds, vector[8:]) == PLAIN[:size]
            assert aes.encrypt(PLAIN[:size], boots, seconds) == (bytes.fromhex(sealed)[:size], vector[8:])
            aes._salt -= 1


def pysnmp_cipher(priv: str) -> Any:
    folder, module, name = {
        "des": ("rfc3414", "des", "Des"), "aes128": ("rfc3826", "aes", "Aes"),
        "aes192": ("eso", "aes192", "AesBlumenthal192"), "aes256": ("eso", "aes256", "AesBlumenthal256"),
        "aes192c": ("eso", "aes192", "Aes192"), "aes256c": ("eso", "aes256", "Aes256"),
    }[priv]  # fmt: skip
    return getattr(importlib.import_module(f"pysnmp.proto.secmod.{folder}.priv.{module}"), name)()


# (1, 3, 6, 1, 6, 3, 10, 1, 1, n) and RFC 7860's: pysnmp takes the algorithm as its OID.
PYSNMP_AUTH = {"md5": 2, "sha": 3, "sha224": 4, "sha256": 5, "sha384": 6, "sha512": 7}


@pytest.mark.parametrize("priv", auth.PRIV_PROTOCOLS)
@pytest.mark.parametrize("protocol", auth.AUTH_PROTOCOLS)
def test_what_we_encrypt_pysnmp_decrypts_and_the_other_way_round(protocol: str, priv: str) -> None:
    theirs = pysnmp_cipher(priv)
    number = (1, 3, 6, 1, 6, 3, 10, 1, 1, PYSNMP_AUTH[protocol])
    engine_id = OctetString(ENGINE)
    key = theirs.localize_key(number, theirs.hash_passphrase(number, OctetString(PRIV.encode())), engine_id)
    ours = auth.cipher(PRIV.encode(), ENGINE, protocol, priv)
    data = bytes(range(48)) * 3
    sealed, salt = ours.encrypt(data, 7, 1000)
    assert bytes(theirs.decrypt_data(key, (7, 1000, OctetString(salt)), OctetString(sealed))) == data
    sealed, salt = theirs.encrypt_data(key, (7, 1000, None), data)
    opened = ours.decrypt(bytes(sealed), 7, 1000, bytes(salt))
    assert opened == data + bytes(len(opened) - len(data))  # with DES it adds a block of padding that is not needed


@pytest.mark.parametrize("priv", ["des", "aes128", "aes256"])
def test_no_vector_comes_twice(priv: str) -> None:
    cipher = auth.cipher(PRIV.encode(), ENGINE, "sha256", priv)
    assert len({cipher.encrypt(bytes(16), 7, 1000) for _ in range(300)}) == 300


@given(
    st.lists(st.binary(min_size=1, max_size=70), min_size=1, max_size=5), st.sampled_from(["des", "aes128", "aes256c"])
)
@settings(deadline=None, max_examples=50)
def test_what_is_encrypted_is_decrypted(messages: list[bytes], priv: str) -> None:
    one, other = CIPHERS[priv]
    for seconds, data in enumerate(messages):
        sealed, salt = one.encrypt(data, 3, seconds)
        opened = other.decrypt(sealed, 3, seconds, salt)
        assert opened[: len(data)] == data and not any(opened[len(data) :]) and len(opened) - len(data) < 8


CIPHERS = {
    priv: [auth.cipher(b"a password", ENGINE, "sha512", priv) for _ in range(2)]
    for priv in ("des", "aes128", "aes256c")
}

NET_SNMP_AUTH = {
    "md5": "MD5", "sha": "SHA", "sha224": "SHA-224", "sha256": "SHA-256", "sha384": "SHA-384", "sha512": "SHA-512",
}  # fmt: skip
NET_SNMP_PRIV = {
    "": "", "des": "DES", "aes128": "AES", "aes192": "AES-192", "aes256": "AES-256", "aes192c": "AES-192-C",
    "aes256c": "AES-256-C",
}  # fmt: skip


def test_net_snmp_is_answered_in_every_pair_of_algorithms(tmp_path: Path) -> None:
    users = tuple(
        SnmpUser(f"{one}-{other}", one, other, "read", AUTH.encode(), PRIV.encode())
        for one in NET_SNMP_AUTH
        for other in NET_SNMP_PRIV
    )
    with running(a_config(tmp_path, users=users)) as agent:
        for user in users:
            words = ["-v3", "-u", user.name, "-a", NET_SNMP_AUTH[user.auth], "-A", AUTH, "-l", "authNoPriv"]
            if user.priv:
                words += ["-x", NET_SNMP_PRIV[user.priv], "-X", PRIV, "-l", "authPriv"]
            assert ":" in agent.value(words, SYS_UP_TIME), user
        wrong = ["-v3", "-u", "sha256-aes128", "-a", "SHA-512", "-A", AUTH, "-x", "AES", "-X", PRIV, "-l", "authPriv"]
        assert "uthentication failure" in agent.run("snmpget", [*wrong, "-r0"], SYS_UP_TIME).stderr
        # The right passphrase, another algorithm: nothing can be read of it.
        wrong = ["-v3", "-u", "sha-aes256", "-a", "SHA", "-A", AUTH, "-x", "AES-256-C", "-X", PRIV, "-l", "authPriv"]
        assert "ecryption error" in agent.run("snmpget", [*wrong, "-r0"], SYS_UP_TIME).stderr
