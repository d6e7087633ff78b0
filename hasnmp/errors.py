"""What hasnmp raises and refuses.

    HasnmpError
    +-- ConfigError     a configuration file with faults; carries every one of them
    +-- WireError       octets that are not a valid datagram or lease slot; carries the counter's name
    +-- Refused         a command that was not accepted; carries a Code, which is also the exit status
    +-- Unreachable     the local daemon (or another node's agent) does not answer

A refusal says what, why with numbers, and what to do. It is mapped at the edges only: to an exit status by the command
line, to a result row by the engine, to an SNMP error-status by the agent.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Code(IntEnum):
    """Result of a command: haCommandResult in the MIB and the exit status of the command line, the same numbers."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 10
    TARGET_DOWN = 11
    TARGET_EXCLUDED = 12
    TARGET_STANDBY = 13
    TARGET_RECOVERING = 14
    TARGET_NOT_MEMBER = 15
    ALREADY_THERE = 16
    BUSY = 17
    INHIBITED = 18
    FROZEN = 19
    BLOCKED = 20
    NO_TARGET = 21
    PROMISED = 22
    ARBITER_LOST = 23
    CONFIG_MISMATCH = 24
    NOT_RECOVERING = 25
    STARTING = 26
    NOT_PASSIVE = 27
    NOT_ALLOWED = 28
    TIMED_OUT = 29
    TARGET_FAILED = 30
    PEER_LOST = 31
    NO_ENGINE = 32
    NOT_OWNER = 33
    UNSUPPORTED = 34
    NOT_FENCED = 35
    FENCE_FAILED = 36
    CONFIG_INVALID = 37
    NEEDS_APPLY = 38


class HasnmpError(Exception):
    """The root of every error that hasnmp raises on purpose."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of a configuration file, shown as ``file:line: key: what, why, what is allowed``."""

    source: str
    line: int
    key: str
    text: str

    def __str__(self) -> str:
        return f"{self.source}:{self.line}: {self.key}: {self.text}"


class ConfigError(HasnmpError):
    """A configuration with one fault or more; str() shows all of them, a line each, in the file's order."""

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults = faults


class WireError(HasnmpError):
    """A datagram or lease slot that can't be used; `reason` names the counter it is counted under.

    peer: the node that signed it, where its version is one that can't be understood; "" otherwise. detail: why, in words.
    """

    def __init__(self, reason: str, detail: str = "", peer: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
        self.peer = peer


class Refused(HasnmpError):
    """A command that was not accepted, with the code that the MIB and the exit status share."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(f"{text} [{code.name}={int(code)}]")
        self.code = code
        self.text = text


class Unreachable(HasnmpError):
    """Nobody answers at the control socket, or at the SNMP address, that was asked."""
