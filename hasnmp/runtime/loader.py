"""The loader: a process that reads the configuration for a running daemon, for its guardian must not run a parser.

Forked from the guardian, so that both are the same code: what it finds comes back over a pipe as one pickled Loaded, and then
it is gone. A parser that hangs (a file on a dead network disk) or dies costs the guardian nothing but LIMIT_S of patience.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import selectors
import signal
import stat
from collections.abc import Callable
from dataclasses import dataclass

from hasnmp import config as files
from hasnmp.agents import ocf_metadata
from hasnmp.config_changes import Changes, compare
from hasnmp.errors import ConfigError
from hasnmp.runtime.kernel import boottime_ns
from hasnmp.runtime.processes import SOFTWARE, Child, Family, S, log
from hasnmp.settings import Config

LIMIT_S = 30  # to read a file and the secrets that it names
LONGEST = 64 << 20  # octets of an answer; a thousand services make one
CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class Loaded:
    """faults: why the file can't be used, a line each; then config is None."""

    config: Config | None = None
    changes: Changes = Changes()
    faults: tuple[str, ...] = ()


def complete(config: Config) -> Config:
    """With the times that the file leaves to OCF agents. Runs them, if what they said is not kept from before."""
    config, notes = ocf_metadata.complete(config)
    for note in notes:
        log("agent_tells_nothing", logging.WARNING, why=note)
    return config


def load(path: str, old: Config, node: str) -> Loaded:
    """Read and judge a file, and make the folders that it names. Every fault goes to the log as well."""
    try:
        new = complete(files.load(path))
        changes = compare(old, new)
        if not changes.needs_apply and node in [n.name for n in new.nodes]:
            make_folders(new)
    except ConfigError as error:
        faults = tuple(str(fault) for fault in error.faults)
        for fault in faults:
            log("configuration_faulty", logging.ERROR, fault=fault)
        return Loaded(faults=faults)
    except OSError as error:
        return Loaded(faults=(f"{error.filename or path}: {error.strerror}",))
    return Loaded(new, changes)


def judge(text: str, path: str, old: Config, node: str) -> Loaded:
    """What would `text` be in place of the file at `path`? Nothing is written."""
    try:
        new = complete(files.parse(text, path, os.path.dirname(path)))
    except ConfigError as error:
        return Loaded(faults=tuple(str(fault) for fault in error.faults))
    changes = compare(old, new)
    if refused := (*changes.needs_stop, *changes.needs_restart):
        names = ", ".join(refused)
        return Loaded(
            faults=(f"{names} can't change while hasnmpd runs: stop it on every node, and start it with the new file",)
        )
    now, then = old.heartbeat.keys, new.heartbeat.keys
    if now and (then[0] not in now or now[0] not in then):
        return Loaded(
            faults=(
                "heartbeat.key_files: keys roll by reloads, one node after the other: first add the new one second",
            )
        )
    return Loaded(new, changes)


def adopt(text: str, path: str, old: Config, node: str) -> Loaded:
    """Write `text` in place of the file, which is kept as FILE.before, and load that."""
    loaded = judge(text, path, old, node)
    if loaded.config is None:
        return loaded
    try:
        _replace(path, text.encode())
    except OSError as error:
        return Loaded(faults=(f"{path} can't be written: {error.strerror}",))
    return load(path, old, node)


def _replace(path: str, octets: bytes) -> None:
    """At once and for good: after a power cut it is the old or the new one, with the same owner and mode. Raises OSError."""
    status = os.stat(path)
    draft, before = f"{path}.new", f"{path}.before"
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(octets)
        os.fchown(file.fileno(), status.st_uid, status.st_gid)
        os.fchmod(file.fileno(), stat.S_IMODE(status.st_mode))
        file.flush()
        os.fsync(file.fileno())
    with contextlib.suppress(FileNotFoundError):
        os.unlink(before)
    os.link(path, before)  # a second name, not a rename: the file itself never ceases to exist
    os.replace(draft, path)
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def make_folders(config: Config) -> None:
    """Raises OSError."""
    os.makedirs(config.state_dir, mode=0o700, exist_ok=True)
    os.makedirs(config.run_dir, mode=0o755, exist_ok=True)
    os.makedirs(os.path.dirname(config.control.socket) or ".", mode=0o755, exist_ok=True)


class Loader:
    """The guardian's side of one run. `done` is called once, from the guardian's loop."""

    def __init__(
        self,
        family: Family,
        selector: selectors.BaseSelector,
        job: Callable[[], Loaded],
        done: Callable[[Loaded], None],
    ) -> None:
        """Raises OSError: no process could be made."""
        self._selector, self._done = selector, done
        self._data = bytearray()
        self.until_ns = boottime_ns() + LIMIT_S * S
        self._pipe, answer = os.pipe2(os.O_CLOEXEC)

        def main() -> int:
            os.close(self._pipe)
            with open(answer, "wb") as file:
                pickle.dump(job(), file)
            return 0

        try:
            child = Child("loader", "hasnmp-load", main)
            family.fork(child)
            self._pid = child.pid
        except OSError:
            os.close(self._pipe)
            raise
        finally:
            os.close(answer)
        os.set_blocking(self._pipe, False)
        selector.register(self._pipe, selectors.EVENT_READ, self._readable)

    def look(self, now: int) -> None:
        """Give up when the time is over."""
        if now >= self.until_ns:
            self._end(
                Loaded(
                    faults=(
                        f"the file, or a secret that it names, was not read within {LIMIT_S} s; is its disk there?",
                    )
                )
            )

    def _readable(self) -> None:
        try:
            data = os.read(self._pipe, CHUNK)
        except BlockingIOError:
            return
        self._data += data
        if len(self._data) > LONGEST:
            self._end(Loaded(faults=(f"the loader's answer is longer than {LONGEST} octets",)))
        elif not data:
            try:
                loaded = pickle.loads(self._data)  # what our own fork wrote
                assert isinstance(loaded, Loaded)
            except Exception:
                loaded = Loaded(faults=(f"the loader died (its exit status is in the log; {SOFTWARE} is a defect)",))
            self._end(loaded)

    def _end(self, loaded: Loaded) -> None:
        self.until_ns = 1 << 62
        self._selector.unregister(self._pipe)
        os.close(self._pipe)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)  # reaped by the guardian, as any child
        self._done(loaded)
