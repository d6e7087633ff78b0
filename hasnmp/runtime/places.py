"""What lies in run_dir for the next guardian, for `hasnmpd --handover`, and for whoever starts a second daemon for this node.

Somebody may remove that folder, or clean it, while this daemon runs. It is made anew then, as it was: without the lock a second
daemon would begin by ending everything that this one runs, and would not be told that it is the second.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hasnmp.runtime import handover
from hasnmp.runtime.kernel import start_time
from hasnmp.runtime.loader import make_folder
from hasnmp.runtime.processes import S, log

if TYPE_CHECKING:
    from hasnmp.runtime.guardian import Guardian

LOOK_NS = 1 * S


def lock_path(run_dir: str, node: str) -> Path:
    return Path(run_dir, f"{node}.lock")


def lock(path: Path) -> int:
    """Gives the descriptor that keeps it. Raises OSError; BlockingIOError: another daemon has it."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # by process: the children do not inherit it
    except OSError:
        os.close(fd)
        raise
    return fd


def engine_path(g: Guardian) -> Path:
    return Path(g.config.run_dir, f"{g.node}.engine")


def record_engine(g: Guardian) -> None:
    pid = g.family.engine.pid
    with contextlib.suppress(OSError):
        engine_path(g).write_text(f"{pid} {start_time(pid)} {g.boot}")


def record_holder(g: Guardian) -> None:
    """For who wants a handover. A full run_dir is no reason not to run."""
    path = Path(g.config.run_dir, f"{g.node}.holder")
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
            json.dump({"holder": g.holder, "boot_id": g.boot, "pid": os.getpid(), "handover": handover.FORM}, file)
    except OSError as error:
        log("holder_not_written", logging.ERROR, path=str(path), why=error.strerror,
            next="this daemon runs, but can't hand over: make room, then restart it before the next upgrade")  # fmt: skip


@dataclass(slots=True)
class Places:
    guardian: Guardian
    said: str = ""
    looked_ns: int = 0

    def poll(self, now: int) -> None:
        """Called whenever the guardian's loop turns, which its engine's signs of life see to."""
        if now - self.looked_ns < LOOK_NS:
            return
        self.looked_ns = now
        try:
            self._hold()
        except OSError as error:
            why = error.strerror or str(error)
            if why != self.said:
                log("run_dir_lost", logging.ERROR, path=self.guardian.config.run_dir, why=why,
                    next="start no other daemon for this node: it would end what this one runs; tried again each second")  # fmt: skip
            self.said = why

    def _hold(self) -> None:
        """Make anew what is not there. The engine does so with its socket. Raises OSError."""
        g = self.guardian
        path = lock_path(g.config.run_dir, g.node)
        if _is_open_as(path, g.lock):
            return
        make_folder(g.config.run_dir, 0o755)
        before, g.lock = g.lock, lock(path)
        os.close(before)
        record_holder(g)
        record_engine(g)
        g.belongings.write_anew()
        self.said = ""
        log(
            "run_dir_made_anew", logging.WARNING, path=g.config.run_dir, why="somebody has removed it, or what is in it"
        )


def _is_open_as(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except FileNotFoundError:
        return False
