"""The notification originator (RFC 3413 section 3.3): v2c and v3 traps, sent by pysnmp.

pysnmp is loaded only once the listeners are up, in a thread, and sends one trap to nowhere before the first real one:
what it loads lazily would make that one the better part of a second late. Its v3 messages carry our own engine ID, boots
and time - a trap's sender is its authoritative engine - so that a receiver knows the agent and its traps as one.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Any

from hasnmp.settings import Receiver, Snmp
from hasnmp.snmp.listener import split_address
from hasnmp.snmp.objects import Syntax

Oid = tuple[int, ...]
Variable = tuple[Oid, Syntax, int | bytes | Oid]

SYS_UP_TIME = (1, 3, 6, 1, 2, 1, 1, 3, 0)
SNMP_TRAP_OID = (1, 3, 6, 1, 6, 3, 1, 1, 4, 1, 0)
_LEVELS = {True: "authPriv", False: "authNoPriv"}


class Originator:
    """Sends notifications to the configured receivers. load() in any thread, then start() and the rest in the loop's."""

    def __init__(self, settings: Snmp, engine_id: bytes, boots: int, seconds: Callable[[], int]) -> None:
        self._settings = settings
        self._engine_id = engine_id
        self._boots = boots
        self._seconds = seconds
        self._names: list[str] = []
        self._engine: Any = None

    def load(self) -> None:
        """Import pysnmp and make its engine ours. Slow, and pure: no socket is opened."""
        from pysnmp.entity import config, engine
        from pysnmp.entity.rfc3413 import ntforg
        from pysnmp.proto import rfc1902
        from pysnmp.proto.api import v2c

        self._config: Any = config
        self._v2c: Any = v2c
        self._types: dict[Syntax, Any] = {
            Syntax.INTEGER32: rfc1902.Integer32, Syntax.OCTETS: rfc1902.OctetString,
            Syntax.OID: rfc1902.ObjectIdentifier, Syntax.IPADDRESS: rfc1902.IpAddress,
            Syntax.COUNTER32: rfc1902.Counter32, Syntax.UNSIGNED32: rfc1902.Unsigned32,
            Syntax.TIMETICKS: rfc1902.TimeTicks, Syntax.COUNTER64: rfc1902.Counter64,
        }  # fmt: skip
        # An ID given to its constructor would make it keep boots of its own under the temporary folder.
        self._engine = engine.SnmpEngine()
        builder = self._engine.get_mib_builder()
        identity, boots, time = builder.import_symbols(
            "__SNMP-FRAMEWORK-MIB", "snmpEngineID", "snmpEngineBoots", "snmpEngineTime"
        )
        identity.syntax = identity.syntax.clone(self._engine_id)
        self._engine.snmpEngineID = identity.syntax
        boots.syntax = boots.syntax.clone(self._boots)
        time.syntax = _engine_time(type(time.syntax), self._seconds)
        self._sender: Any = ntforg.NotificationOriginator()
        for user in self._settings.users:
            if any(receiver.user == user.name for receiver in self._settings.notify):
                config.add_v3_user(
                    self._engine,
                    user.name,
                    config.USM_AUTH_HMAC192_SHA256,
                    rfc1902.OctetString(user.auth_secret),
                    config.USM_PRIV_CFB128_AES if user.priv else config.USM_PRIV_NONE,
                    rfc1902.OctetString(user.priv_secret) if user.priv else None,
                )

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Open the sockets, name the targets, and send one trap of each kind of target to a socket of our own."""
        from pysnmp.carrier.asyncio.dgram import udp, udp6

        transports: dict[Oid, Any] = {}
        receivers = [(f"r{number}", receiver) for number, receiver in enumerate(self._settings.notify)]
        with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as nowhere:
            nowhere.bind(("127.0.0.1", 0))
            warm = [
                (f"w{number}", Receiver(f"127.0.0.1:{nowhere.getsockname()[1]}", r.version, r.user, r.community))
                for number, (_, r) in enumerate(receivers)
            ]
            for name, receiver in receivers + warm:
                host, port = split_address(receiver.to)
                module = udp6 if ":" in host else udp
                domain = module.DOMAIN_NAME
                if domain not in transports:
                    kind = module.Udp6Transport if module is udp6 else module.UdpTransport
                    transports[domain] = _send_only(kind)(loop=loop).open_client_mode()
                    self._config.add_transport(self._engine, domain, transports[domain])
                self._add_target(name, receiver, domain, (host, port))
            self._names = [name for name, _ in warm]
            self.send((1, 3, 6, 1, 6, 3, 1, 1, 5, 1), 0, [])
        self._names = [name for name, _ in receivers]

    def _add_target(self, name: str, receiver: Receiver, domain: Oid, address: tuple[str, int]) -> None:
        config, engine = self._config, self._engine
        if receiver.version == "3":
            private = any(user.name == receiver.user and user.priv for user in self._settings.users)
            config.add_target_parameters(engine, name, receiver.user, _LEVELS[private], 3)
        else:
            config.add_v1_system(engine, name, receiver.community, securityName=name)
            config.add_target_parameters(engine, name, name, "noAuthNoPriv", 1)
        config.add_target_address(engine, name, domain, address, name)

    def send(self, trap_oid: Oid, up_ticks: int, variables: list[Variable]) -> list[Exception]:
        """Send a trap to every receiver. Returns what went wrong, at most one a receiver: the others got it."""
        api, types = self._v2c.apiTrapPDU, self._types
        values = [(oid, types[syntax](value)) for oid, syntax, value in variables]
        errors: list[Exception] = []
        for name in self._names:
            pdu = self._v2c.SNMPv2TrapPDU()
            api.set_defaults(pdu)
            first = [
                (SYS_UP_TIME, types[Syntax.TIMETICKS](up_ticks)),
                (SNMP_TRAP_OID, types[Syntax.OID](trap_oid)),
            ]
            api.set_varbinds(pdu, first + values)
            try:
                self._sender.send_pdu(self._engine, name, self._engine_id, b"", pdu)
            except Exception as error:  # whatever pysnmp raises for one receiver must not keep it from the next
                errors.append(error)
        return errors

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close_dispatcher()


def _send_only(base: Any) -> Any:
    """Nobody has to answer a trap, and pysnmp would take in whatever comes to the port that traps leave from: it answers
    discovery there, and a few large datagrams a second hold the whole agent up."""

    class SendOnly(base):  # type: ignore[misc]
        def datagram_received(self, datagram: bytes, address: Any) -> None:
            pass

    return SendOnly


def _engine_time(base: Any, seconds: Callable[[], int]) -> Any:
    """pysnmp reads snmpEngineTime by cloning it: give it ours then, which no change of the wall clock moves."""

    class EngineTime(base):  # type: ignore[misc]
        def clone(self, *args: Any, **kwargs: Any) -> Any:
            return super().clone(*(args or (seconds(),)), **kwargs)

    return EngineTime(seconds())
