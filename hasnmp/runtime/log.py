"""How hasnmp logs: structlog to standard error; colours on a terminal, one JSON object a line otherwise.

Event names are in the past tense, values carry their units: log.warning("peer_lost", peer="node-b", silent_ms=2100).
The journal and every shipper read standard error; files and rotation are theirs.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import stat
import sys
from typing import Any, cast

import structlog

from hasnmp import settings
from hasnmp.model import Severity

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

# The level at which an event of each severity is logged.
SEVERITY_LEVELS = {
    Severity.CLEARED: logging.INFO,
    Severity.INDETERMINATE: logging.WARNING,
    Severity.CRITICAL: logging.CRITICAL,
    Severity.MAJOR: logging.ERROR,
    Severity.MINOR: logging.WARNING,
    Severity.WARNING: logging.WARNING,
    Severity.INFO: logging.INFO,
}
PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "exception": 3, "critical": 2}
LONGEST = select.PIPE_BUF  # octets of a line: a pipe that select calls writable takes this much without blocking


class Output:
    """A stream for structlog whose reader may sleep or be gone: that costs the line, never the daemon's time or life.

    O_NONBLOCK is not used, for it would also change the terminal or pipe of whoever started us.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        # The journal's stream is a socket, for which "writable" does not mean that a whole line fits.
        self._socket = socket.socket(fileno=os.dup(fd)) if stat.S_ISSOCK(os.fstat(fd).st_mode) else None

    def write(self, text: str) -> int:
        data = text.encode("utf-8", "replace")
        if len(data) > LONGEST:
            data = data[: LONGEST - 1] + b"\n"
        with contextlib.suppress(OSError):
            if self._socket is not None:
                self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            elif select.select((), (self._fd,), (), 0)[1]:
                os.write(self._fd, data)
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""


def _shorten(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Keep the end of a long text: a line over LONGEST would be cut, and would then be no JSON any more."""
    for key, value in event.items():
        if isinstance(value, str) and len(value) > LONGEST // 4:
            event[key] = "..." + value[-LONGEST // 4 :]
    return event


def _to_journal() -> bool:
    """Does systemd's journal read standard error? systemd.exec(5), $JOURNAL_STREAM."""
    told, found = os.environ.get("JOURNAL_STREAM", ""), os.fstat(sys.stderr.fileno())
    return told == f"{found.st_dev}:{found.st_ino}"


def _prefixed(_logger: Any, method: str, line: str) -> str:
    """With its syslog priority, as the journal takes it: sd-daemon(3), and RFC 5424, 6.2.1."""
    return f"<{PRIORITIES.get(method, 6)}>{line}"


def set_up(log: settings.Log, node: str, process: str) -> Any:
    """Configure structlog for this process and return its logger, bound to the node's and the process's names.

    Args:   process: "guardian", "engine", "lease", "snmp"...; each process calls this once, after its fork.
    """
    terminal = sys.stderr.isatty()
    console = log.format == "console" or (log.format == "auto" and terminal)
    prefix: list[Any] = [_prefixed] if _to_journal() else []
    plain: list[Any] = [] if console else [structlog.processors.format_exc_info, _shorten]
    renderer: Any = structlog.processors.JSONRenderer()
    if console:
        renderer = structlog.dev.ConsoleRenderer(
            colors=terminal, pad_event=24, exception_formatter=structlog.dev.plain_traceback
        )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S.%f" if console else "iso", utc=not console),
            *plain,
            renderer,
            *prefix,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS.get(log.level, logging.INFO)),
        logger_factory=structlog.WriteLoggerFactory(file=cast("Any", Output(sys.stderr.fileno()))),
        cache_logger_on_first_use=False,
    )
    return structlog.get_logger().bind(node=node, process=process)
