"""The manager side: what `hasnmp --host` asks of a node's agent, over SNMP by pysnmp. Blocking, for the command line.

pysnmp is imported when the first request is made, and its MIB machinery is left out: names go and come as numbers.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hasnmp.errors import HasnmpError, Unreachable
from hasnmp.snmp.objects import Oid, Syntax, Value

REPETITIONS = 25
_AUTH = {
    "md5": "USM_AUTH_HMAC96_MD5", "sha": "USM_AUTH_HMAC96_SHA", "sha1": "USM_AUTH_HMAC96_SHA",
    "sha224": "USM_AUTH_HMAC128_SHA224", "sha256": "USM_AUTH_HMAC192_SHA256", "sha384": "USM_AUTH_HMAC256_SHA384",
    "sha512": "USM_AUTH_HMAC384_SHA512",
}  # fmt: skip
_PRIV = {
    "": "USM_PRIV_NONE", "des": "USM_PRIV_CBC56_DES", "aes128": "USM_PRIV_CFB128_AES",
    "aes192": "USM_PRIV_CFB192_AES_BLUMENTHAL", "aes256": "USM_PRIV_CFB256_AES_BLUMENTHAL",
    "aes192c": "USM_PRIV_CFB192_AES", "aes256c": "USM_PRIV_CFB256_AES",
}  # fmt: skip
AUTHENTICATIONS, PRIVACIES = tuple(_AUTH), tuple(name for name in _PRIV if name)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who asks: a user with its passphrases, or a community (v2c)."""

    user: str = ""
    auth: str = "sha256"
    priv: str = ""
    auth_secret: bytes = field(default=b"", repr=False)
    priv_secret: bytes = field(default=b"", repr=False)
    community: bytes = field(default=b"", repr=False)


class Answered(HasnmpError):
    """The agent answered with an error. status: error-status by its name in RFC 3416; index: of the variable, from 1."""

    def __init__(self, status: str, index: int) -> None:
        super().__init__(f"{status} at variable {index}" if index else status)
        self.status, self.index = status, index


class Manager:
    """Requests to one agent. Raises Unreachable from every method: no answer, or one that says why not."""

    def __init__(self, host: str, port: int, who: Credentials, timeout_s: float = 1.0, retries: int = 2) -> None:
        from pysnmp.hlapi.v3arch import asyncio as hlapi

        self._api: Any = hlapi
        self.place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._loop = asyncio.new_event_loop()
        self._engine = hlapi.SnmpEngine()
        self._context = hlapi.ContextData()
        self._who: Any = (
            hlapi.UsmUserData(
                who.user, who.auth_secret, who.priv_secret or None,
                authProtocol=getattr(hlapi, _AUTH[who.auth]), privProtocol=getattr(hlapi, _PRIV[who.priv]),
            )
            if who.user else hlapi.CommunityData(who.community, mpModel=1)
        )  # fmt: skip
        kind = hlapi.Udp6TransportTarget if ":" in host else hlapi.UdpTransportTarget
        self._target = self._wait(kind.create((host, port), timeout=timeout_s, retries=retries))

        self.close = weakref.finalize(self, _close, self._loop, self._engine)  # at the latest when the program ends

    def _wait(self, job: Coroutine[Any, Any, T]) -> T:
        try:
            return self._loop.run_until_complete(job)
        except OSError as error:
            raise Unreachable(f"{self.place} can't be reached: {error.strerror or error}") from None

    def _ask(self, command: str, variables: list[tuple[Oid, Any]], *numbers: int) -> list[tuple[Oid, Value | None]]:
        """None for the value of what is not there."""
        api = self._api
        asked = [api.ObjectType(api.ObjectIdentity(oid), value) for oid, value in variables]
        trouble, status, index, answer = self._wait(
            getattr(api, command)(
                self._engine, self._who, self._target, self._context, *numbers, *asked, lookupMib=False
            )
        )
        if trouble:
            raise Unreachable(f"{self.place} does not answer as it should: {_said(trouble)}")
        if status:
            raise Answered(status.prettyPrint(), int(index))
        return [(tuple(name), _value(value)) for name, value in answer]

    def get(self, names: list[Oid]) -> list[Value | None]:
        """Raises Answered."""
        null = self._api.Null("")
        return [value for _, value in self._ask("get_cmd", [(name, null) for name in names])]

    def walk(self, subtree: Oid) -> dict[Oid, Value]:
        """Everything below, by GETBULK. Raises Answered."""
        found: dict[Oid, Value] = {}
        last = subtree
        while True:
            for name, value in self._ask("bulk_cmd", [(last, self._api.Null(""))], 0, REPETITIONS):
                if value is None or name[: len(subtree)] != subtree or name <= last:
                    return found
                found[name] = value
                last = name

    def set(self, variables: list[tuple[Oid, Syntax, int | bytes]]) -> None:
        """Raises Answered: refused."""
        api = self._api
        types = {Syntax.INTEGER32: api.Integer32, Syntax.OCTETS: api.OctetString}
        self._ask("set_cmd", [(name, types[syntax](value)) for name, syntax, value in variables])


def _close(loop: asyncio.AbstractEventLoop, engine: Any) -> None:
    engine.close_dispatcher()
    for task in asyncio.all_tasks(loop):
        task.cancel()
    if asyncio._get_running_loop() is None:  # collected as garbage while another loop runs, the tasks end unheard
        loop.run_until_complete(asyncio.sleep(0))
    loop.close()


def _said(trouble: Any) -> str:
    """What pysnmp says of a request that failed, in words for the operator."""
    text = str(trouble)
    for sign, meaning in (
        ("No SNMP response", "no answer; is the address right, hasnmpd running, and may this address ask?"),
        ("Unknown USM user", "it knows no such user; see snmp.users of its configuration"),
        ("Wrong SNMP PDU digest", "the authentication passphrase or algorithm is another there"),
        ("Ciphering services", "the privacy passphrase or algorithm is another there"),
        ("Unsupported SNMP security level", "the user has another security level there"),
    ):  # fmt: skip
        if sign.lower() in text.lower():
            return meaning
    return text


def _value(value: Any) -> Value | None:
    kind = type(value).__name__
    if kind in ("Null", "NoSuchObject", "NoSuchInstance", "EndOfMibView"):
        return None
    if kind in ("ObjectIdentifier", "ObjectName"):
        return tuple(value)
    return bytes(value) if hasattr(value, "asOctets") else int(value)
