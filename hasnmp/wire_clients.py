"""What clients and outside agents say to a node by UDP, and what it answers: text, signed. Pure: values <-> octets.

A datagram is a line of words in UTF-8, and its signature:

    hasnmp-1 KIND KEY NONCE CLUSTER WORD... "\\n" SIGNATURE

    KEY        name of the key that signs (`clients.keys`): both sides sign with it
    NONCE      32 hexadecimal digits by chance, which the answer repeats: an answer of yesterday answers nothing today
    SIGNATURE  HMAC-SHA-256 (RFC 2104) over all before it, the newline included; 64 lower-case hexadecimal digits

    request                                     answer
    find ... NAME                               found ... NODE NAME GROUP OWNER TOKEN LEASE_MS STATE AGE_MS ADDRESS PORT
    challenge ...                               given ... NODE CHALLENGE
    report ... CHALLENGE SERVICE up|down TEXT   result ... NODE CODE TEXT, which any request may get in place of its answer

"-" is a word that says nothing. TEXT is the rest of the line. A request is filled with spaces before its newline to REQUEST
octets; what is shorter is not looked at, and no answer is longer: who forges a sender's address gains nothing by it. Words
that a later version adds stand at the end, and readers leave them alone. docs/clients.md says what the words mean.
"""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass

from hasnmp.errors import WireError

VERSION = b"hasnmp-1"
REQUEST = 512  # octets of a request, at least; and of an answer, at most
LONGEST = 1024  # octets of a request, at most
TEXT = 200  # octets of a text, at most
NOTHING = "-"
_SIGNATURE = 64
_NONCE = re.compile(r"[0-9a-f]{32}", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}", re.ASCII)
_CHALLENGE = re.compile(r"[0-9a-f.]{8,80}", re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,19}", re.ASCII)
_STATE = re.compile(r"[a-z-]{1,24}", re.ASCII)
_ADDRESS = re.compile(r"[0-9A-Fa-f.:]{2,45}|-", re.ASCII)


@dataclass(frozen=True, slots=True)
class Find:
    """Who runs this? name: of a service, or of a group where no service is called so."""

    key: str
    nonce: str
    cluster: str
    name: str


@dataclass(frozen=True, slots=True)
class Challenge:
    """Something to sign is asked for: a report has to show that it is made now."""

    key: str
    nonce: str
    cluster: str


@dataclass(frozen=True, slots=True)
class Report:
    """A passive service is up, or down. nonce: that of the Challenge whose answer is shown."""

    key: str
    nonce: str
    cluster: str
    challenge: str
    service: str
    up: bool
    text: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """What `node` says of a service and its group.

    owner: who runs it as far as this node knows, "" for nobody. lease_ms: what is left of the lease that this very node holds
    now; 0: it holds none. token: of that lease, else the highest that it has heard of. state: of the service (or group) as it
    was age_ms ago, "unknown" where that is too old. address: where clients reach it, "" = wherever they asked this node.
    port: 0 = not configured.
    """

    key: str
    nonce: str
    cluster: str
    node: str
    name: str
    group: str
    owner: str
    token: int
    lease_ms: int
    state: str
    age_ms: int
    address: str = ""
    port: int = 0


@dataclass(frozen=True, slots=True)
class Given:
    key: str
    nonce: str
    cluster: str
    node: str
    challenge: str


@dataclass(frozen=True, slots=True)
class Result:
    """code: as errors.Code; 0 = done."""

    key: str
    nonce: str
    cluster: str
    node: str
    code: int
    text: str = ""


Request = Find | Challenge | Report
Answer = Found | Given | Result


def _clean(text: str) -> str:
    """On one line, without control characters, at most TEXT octets."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    octets = line.encode(errors="replace")
    return line if len(octets) <= TEXT else octets[: TEXT - 3].decode(errors="ignore") + "..."


def _words(message: Request | Answer) -> list[str]:
    m = message
    match m:
        case Find():
            return ["find", m.key, m.nonce, m.cluster, m.name]
        case Challenge():
            return ["challenge", m.key, m.nonce, m.cluster]
        case Report():
            state = "up" if m.up else "down"
            return ["report", m.key, m.nonce, m.cluster, m.challenge, m.service, state, _clean(m.text) or NOTHING]
        case Found():
            return [
                "found", m.key, m.nonce, m.cluster, m.node, m.name, m.group, m.owner or NOTHING, str(m.token), str(m.lease_ms),
                m.state, str(m.age_ms), m.address or NOTHING, str(m.port),
            ]  # fmt: skip
        case Given():
            return ["given", m.key, m.nonce, m.cluster, m.node, m.challenge]
        case Result():
            return ["result", m.key, m.nonce, m.cluster, m.node, str(m.code), _clean(m.text) or NOTHING]


def signature(key: bytes, body: bytes) -> bytes:
    return hmac.digest(key, body, "sha256").hex().encode()


def encode(message: Request | Answer, key: bytes) -> bytes:
    """A signed datagram. Raises WireError oversize: its words do not fit."""
    line = VERSION + b" " + " ".join(_words(message)).encode()
    room = REQUEST - _SIGNATURE - 1
    if len(line) > room:
        raise WireError("oversize", f"{len(line)} octets of words; {room} are possible")
    body = (line.ljust(room) if isinstance(message, Find | Challenge | Report) else line) + b"\n"
    return body + signature(key, body)


@dataclass(frozen=True, slots=True)
class Envelope:
    """A datagram of this form, whose signature has not been looked at. body: all that is signed; words: from KIND on."""

    kind: str
    key: str
    body: bytes
    signature: bytes

    def signed_by(self, keys: tuple[bytes, ...]) -> bytes:
        """The one of these keys that made the signature; b"" if none did."""
        good = b""
        for key in keys:
            if hmac.compare_digest(signature(key, self.body), self.signature):
                good = key
        return good


def open_envelope(octets: bytes, least: int = 0, most: int = LONGEST) -> Envelope:
    """Total: any octets give an Envelope or a WireError (malformed, version)."""
    if not max(least, _SIGNATURE + 2) <= len(octets) <= most:
        raise WireError("malformed", f"{len(octets)} octets")
    body, signed = octets[:-_SIGNATURE], octets[-_SIGNATURE:]
    head = body[:96].split(b" ", 3)
    if head[0] != VERSION:
        raise WireError("version" if head[0].startswith(b"hasnmp-") else "malformed", "another first word")
    if body[-1:] != b"\n" or len(head) != 4:
        raise WireError("malformed", "no line of words")
    try:
        return Envelope(head[1].decode("ascii"), head[2].decode("ascii"), body, signed)
    except UnicodeDecodeError:
        raise WireError("malformed", "a kind or a key's name that is not ASCII") from None


def request(envelope: Envelope) -> Request:
    """What a good signature vouches for. Raises WireError malformed."""
    match _split(envelope):
        case ["find", key, nonce, cluster, name, *_] if _named(name):
            return Find(key, nonce, cluster, name)
        case ["challenge", key, nonce, cluster, *_]:
            return Challenge(key, nonce, cluster)
        case ["report", key, nonce, cluster, challenge, service, "up" | "down" as state, *text] if _CHALLENGE.fullmatch(
            challenge
        ) and _named(service):
            return Report(key, nonce, cluster, challenge, service, state == "up", _text(text))
    raise WireError("malformed", f"no request of this form: {envelope.kind[:20]!r}")


def answer(envelope: Envelope) -> Answer:
    """What a good signature vouches for. Raises WireError malformed."""
    match _split(envelope):
        case ["found", key, nonce, cluster, node, name, group, owner, token, lease, state, age, address, port, *_] if (
            all(map(_named, (node, name, group)))
            and (owner == NOTHING or _named(owner))
            and all(map(_NUMBER.fullmatch, (token, lease, age, port)))
            and _STATE.fullmatch(state)
            and _ADDRESS.fullmatch(address)
        ):
            owner, address = ("" if word == NOTHING else word for word in (owner, address))
            return Found(key, nonce, cluster, node, name, group, owner, int(token), int(lease), state, int(age), address,
                         int(port))  # fmt: skip
        case ["given", key, nonce, cluster, node, challenge, *_] if _named(node) and _CHALLENGE.fullmatch(challenge):
            return Given(key, nonce, cluster, node, challenge)
        case ["result", key, nonce, cluster, node, code, *text] if _named(node) and _NUMBER.fullmatch(code):
            return Result(key, nonce, cluster, node, int(code), _text(text))
    raise WireError("malformed", f"no answer of this form: {envelope.kind[:20]!r}")


def _split(envelope: Envelope) -> list[str]:
    """The words from KIND on. Raises WireError malformed."""
    try:
        words = envelope.body.decode().rstrip("\n ").split(" ")[1:]
    except UnicodeDecodeError:
        raise WireError("malformed", "not UTF-8") from None
    if len(words) < 4 or not (_named(words[1]) and _NONCE.fullmatch(words[2]) and _named(words[3])):
        raise WireError("malformed", "key, nonce and cluster do not stand in their places")
    return words


def _named(word: str) -> bool:
    return _NAME.fullmatch(word) is not None


def _text(words: list[str]) -> str:
    text = _clean(" ".join(words))
    return "" if text == NOTHING else text
