"""USM's algorithms: a passphrase as an engine's own key, the digest of a message, and its encryption. Pure.

    md5 sha                      HMAC-MD5-96, HMAC-SHA-96 (RFC 3414 sections 6, 7)
    sha224 sha256 sha384 sha512  HMAC-128-SHA-224 to HMAC-384-SHA-512 (RFC 7860)
    des                          CBC-DES (RFC 3414 section 8)
    aes128                       CFB128-AES-128 (RFC 3826)
    aes192 aes256                the same with longer keys, as Net-SNMP's AES-192 and AES-256 lengthen a key that is too
                                 short (draft-blumenthal-aes-usm-04, section 3.1.2.1)
    aes192c aes256c              as draft-reeder-snmpv3-usm-3desede-00, section 2.1, does: Net-SNMP's AES-192-C and AES-256-C

MD5, SHA-1 and DES are broken elsewhere and weak here; they are for managers that have nothing else.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from hasnmp.wire import Hmac

try:  # where newer versions of cryptography keep what nobody should begin with any more
    from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
except ImportError:
    from cryptography.hazmat.primitives.ciphers.algorithms import TripleDES
try:
    from cryptography.hazmat.decrepit.ciphers.modes import CFB
except ImportError:
    from cryptography.hazmat.primitives.ciphers.modes import CFB


@dataclass(frozen=True, slots=True)
class AuthProtocol:
    """make: the hash; digest: octets of it that a message carries; block: octets that HMAC works on (RFC 2104)."""

    make: Callable[..., Any]
    digest: int
    block: int = 64


AUTH_PROTOCOLS: dict[str, AuthProtocol] = {
    "md5": AuthProtocol(hashlib.md5, 12),
    "sha": AuthProtocol(hashlib.sha1, 12),
    "sha224": AuthProtocol(hashlib.sha224, 16),
    "sha256": AuthProtocol(hashlib.sha256, 24),
    "sha384": AuthProtocol(hashlib.sha384, 32, 128),
    "sha512": AuthProtocol(hashlib.sha512, 48, 128),
}

# Octets of key. For DES eight of them are the key, and eight the pre-initialisation vector.
PRIV_PROTOCOLS: dict[str, int] = {"des": 16, "aes128": 16, "aes192": 24, "aes256": 32, "aes192c": 24, "aes256c": 32}


def password_to_key(secret: bytes, auth: str = "sha256") -> bytes:
    """A passphrase as a key: the hash over 2**20 octets of its repetition (RFC 3414 A.2, RFC 7860 section 9.3)."""
    size = 1 << 20
    key: bytes = AUTH_PROTOCOLS[auth].make((secret * (size // len(secret) + 1))[:size]).digest()
    return key


def localize(key: bytes, engine_id: bytes, auth: str = "sha256") -> bytes:
    """A user's key as this engine alone knows it (RFC 3414 section 2.6)."""
    local: bytes = AUTH_PROTOCOLS[auth].make(key + engine_id + key).digest()
    return local


def privacy_key(secret: bytes, engine_id: bytes, auth: str, priv: str) -> bytes:
    """The localized privacy key, made longer where the hash is shorter than what the cipher takes."""
    key = localize(password_to_key(secret, auth), engine_id, auth)
    wanted = PRIV_PROTOCOLS[priv]
    part = key
    while len(key) < wanted:
        if priv.endswith("c"):
            part = localize(password_to_key(part, auth), engine_id, auth)
        else:
            part = AUTH_PROTOCOLS[auth].make(key).digest()
        key += part
    return key[:wanted]


class Digest(Hmac):
    """HMAC with one localized key, over a whole message whose authentication parameters are zeroes."""

    __slots__ = ()

    def __init__(self, key: bytes, auth: str) -> None:
        protocol = AUTH_PROTOCOLS[auth]
        super().__init__(key, protocol.make, protocol.block, protocol.digest)


class Aes:
    """AES in CFB mode with segments of 128 bits (RFC 3826 section 3.1.3), two contexts kept for all messages.

    A new context for each message's initialisation vector would cost ten times what the encryption does. Decryption needs
    none: every block of key stream is the cipher of the ciphertext before. Encryption goes on where the last message ended,
    after one block whose ciphertext is the new vector, which is what the mode chains from.
    """

    salt_size = 8

    def __init__(self, key: bytes) -> None:
        # A random start, so that no vector comes again under a key while (boots, time) is the same (RFC 3826 3.1.2.1).
        self._salt = int.from_bytes(os.urandom(8), "big")
        self._last = bytes(16)
        self._lock = threading.Lock()  # notifications are encrypted in another thread than answers
        self._block = Cipher(algorithms.AES(key), modes.ECB()).encryptor().update
        self._chain = Cipher(algorithms.AES(key), CFB(self._last)).encryptor().update

    def decrypt(self, data: bytes, boots: int, seconds: int, salt: bytes) -> bytes:
        size = len(data)
        chain = boots.to_bytes(4, "big") + seconds.to_bytes(4, "big") + salt + data
        stream = self._block(chain[: (size + 15) & -16])[:size]
        return (int.from_bytes(data, "big") ^ int.from_bytes(stream, "big")).to_bytes(size, "big")

    def encrypt(self, data: bytes, boots: int, seconds: int) -> tuple[bytes, bytes]:
        """The encrypted octets and the salt that goes with them."""
        size = len(data)
        padded = data + bytes(-size % 16)  # whole blocks, so that the next vector meets a block's start
        with self._lock:
            self._salt = number = (self._salt + 1) & 0xFFFFFFFFFFFFFFFF
            vector = boots << 96 | seconds << 64 | number
            first = (vector ^ int.from_bytes(self._block(self._last), "big")).to_bytes(16, "big")
            out = self._chain(first + padded)
            self._last = out[-16:]
        return out[16 : 16 + size], number.to_bytes(8, "big")


class Des:
    """CBC-DES (RFC 3414 section 8.1.1)."""

    salt_size = 8

    def __init__(self, key: bytes) -> None:
        self._key = TripleDES(key[:8] * 3)  # which is single DES
        self._vector = int.from_bytes(key[8:], "big")
        self._count = itertools.count(int.from_bytes(os.urandom(4), "big"))

    def _mode(self, salt: bytes) -> modes.CBC:
        return modes.CBC((self._vector ^ int.from_bytes(salt, "big")).to_bytes(8, "big"))

    def decrypt(self, data: bytes, boots: int, seconds: int, salt: bytes) -> bytes:
        """Raises ValueError: not whole blocks."""
        if len(data) % 8:
            raise ValueError("DES takes whole blocks of eight octets")
        return Cipher(self._key, self._mode(salt)).decryptor().update(data)

    def encrypt(self, data: bytes, boots: int, seconds: int) -> tuple[bytes, bytes]:
        salt = boots.to_bytes(4, "big") + (next(self._count) & 0xFFFFFFFF).to_bytes(4, "big")
        padded = data + bytes(-len(data) % 8)
        return Cipher(self._key, self._mode(salt)).encryptor().update(padded), salt


def cipher(secret: bytes, engine_id: bytes, auth: str, priv: str) -> Aes | Des:
    """The cipher of a user with this privacy passphrase."""
    key = privacy_key(secret, engine_id, auth, priv)
    return Des(key) if priv == "des" else Aes(key)
