"""The loader: a process that reads the configuration for a running daemon, for its guardian must not run a parser.

Forked from the guardian, so that both are the same code: what it finds comes back over a pipe as one pickled Loaded, and then
it is gone. A parser that hangs (a file on a dead network disk) or dies costs the guardian nothing but LIMIT_S of patience.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import pickle
import pwd
import selectors
import signal
from collections.abc import Callable
from dataclasses import dataclass

from hasnmp import config as files
from hasnmp.agents import ocf_metadata
from hasnmp.arbiters.disk import Blocks
from hasnmp.config_changes import Changes, compare, nobody, settled
from hasnmp.errors import ConfigError, WireError
from hasnmp.runtime import links, members
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


def load(path: str, old: Config, node: str, applying: bool = False) -> Loaded:
    """Read and judge a file, and make the folders that it names. Every fault goes to the log as well. applying: every node
    has judged it. What is to be gone by is known to members.py before."""
    members_path = members.path_of(old, node)
    try:
        new, webs, known = members.go_by(complete(files.load(path)), members_path)
        changes = compare(old, new)
        if not changes.needs_apply and node in [n.name for n in new.nodes]:
            make_folders(new)
        goes = bool(changes.lines) and not changes.needs_stop and not changes.needs_restart
        if goes and (applying or not changes.needs_apply) and not known:
            members.save(members_path, webs)
    except ConfigError as error:
        faults = tuple(str(fault) for fault in error.faults)
        for fault in faults:
            log("configuration_faulty", logging.ERROR, fault=fault)
        return Loaded(faults=faults)
    except OSError as error:
        return Loaded(faults=(f"{error.filename or path}: {error.strerror}",))
    return Loaded(new, changes)


def judge(text: str, path: str, old: Config, node: str) -> Loaded:
    """What would be gone by with `text` in place of the file at `path`? Nothing is written. A node that the file does not have
    stays as it is (`old` itself)."""
    try:
        new, _, _ = members.go_by(complete(files.parse(text, path, os.path.dirname(path))), members.path_of(old, node))
    except ConfigError as error:
        return Loaded(faults=tuple(str(fault) for fault in error.faults))
    changes = compare(old, new)
    if refused := (*changes.needs_stop, *changes.needs_restart):
        names = ", ".join(refused)
        why = "; first a file in which the nodes that come or go are of no group" if "nodes" in refused else ""
        if any(name.endswith(".links") for name in refused):
            why = "; or one link after the other, so that any two nodes keep one that stays as it is"
        return Loaded(
            faults=(
                f"{names} can't change while hasnmpd runs: stop it on every node, and start it with the new file{why}",
            )
        )
    if node not in [n.name for n in new.nodes]:
        return Loaded(old)
    if why := _no_place(old, new) or _no_address(old, new, node):
        return Loaded(faults=(why,))
    if why := nobody(new):
        return Loaded(faults=(why,))
    now, then = old.heartbeat.keys, new.heartbeat.keys
    if now and (then[0] not in now or now[0] not in then):
        return Loaded(
            faults=(
                "heartbeat.key_files: keys roll by reloads, one node after the other: first add the new one second",
            )
        )
    return Loaded(new, changes)


def _no_place(old: Config, new: Config) -> str:
    """Which node of a group could not write to the lease disk, "" when all can: without its slot no other could claim."""
    device = new.arbiter.device
    asked = {g.name: g.asked() for g in old.groups} if device == old.arbiter.device else {}
    more = [(g.name, n) for g in new.groups for n in g.asked() if n not in asked.get(g.name, ())]
    if new.arbiter.type != "disk" or not more:
        return ""
    try:
        blocks = Blocks(device, os.O_RDONLY)
        try:
            header = blocks.header()
        finally:
            blocks.close()
        for group, node in more:
            header.block(group, node)
    except OSError as error:
        return f"arbiter.device: {device} can't be read ({error.strerror}), and every node of a group needs a place there: bring it back first"
    except WireError as error:
        return f"arbiter.device: {device}: {error.detail or error}"
    if header.cluster != new.cluster:
        return (
            f"arbiter.device: {device} is foreign: it is the lease disk {header.uuid} of the cluster {header.cluster}"
        )
    return ""


def _no_address(old: Config, new: Config, node: str) -> str:
    """Which new address or port of its own links this machine can't use, "" when it can: it would hear nobody there."""
    former, port = old.node(node).links, new.heartbeat.port
    for name, address in new.node(node).links.items():
        if (former.get(name), old.heartbeat.port) != (address, port):
            try:
                links.try_out(address, port)
            except OSError as error:
                return f"nodes.{node}.links.{name}: {address} port {port} can't be used here ({error.strerror}); nobody would be heard there"
    return ""


def adopt(text: str, path: str, old: Config, node: str) -> Loaded:
    """Write `text` in place of the file, which is kept as FILE.before, and load that."""
    loaded = judge(text, path, old, node)
    if loaded.config is None or loaded.config is old:
        return loaded
    try:
        # First the file: whoever dies before members.py knows of it, learns of it from the file at its start.
        members.put(path, text.encode(), keep=f"{path}.before")
    except OSError as error:
        return Loaded(faults=(f"{path} can't be written: {error.strerror}",))
    return load(path, old, node, applying=True)


def settle(old: Config, node: str) -> Loaded:
    """Every node has the file that is in force, halfway: its own nodes alone count from here on, whatever becomes of this reload."""
    path = members.path_of(old, node)
    try:
        known = members.load(path)
        new, webs = settled(old, known)
        members.save(path, webs)
    except ConfigError as error:
        return Loaded(faults=tuple(str(fault) for fault in error.faults))
    except OSError as error:
        return Loaded(faults=(f"{path} can't be written: {error.strerror}",))
    return Loaded(new, compare(old, new))


def make_folder(folder: str, mode: int) -> None:
    """Raises OSError."""
    if not os.path.isdir(folder):
        os.makedirs(folder)
        # Whatever the umask of the shell that started us: the members of control.group go through run_dir.
        os.chmod(folder, mode)


def make_folders(config: Config) -> None:
    """Raises OSError, with a text that names the key: it can't be made, or this user can't write in it."""
    for key, folder, mode in (
        ("state_dir", config.state_dir, 0o700),
        ("run_dir", config.run_dir, 0o755),
        ("control.socket", os.path.dirname(config.control.socket) or ".", 0o755),
    ):
        try:
            make_folder(folder, mode)
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, "no right to, or a read-only file system")
        except OSError as error:
            why = f"{key}: {folder} can't be made or written in ({error.strerror}); it is to be a folder of user {_user()}"
            raise OSError(error.errno, why) from None


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


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
