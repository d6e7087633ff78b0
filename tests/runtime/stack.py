"""A real guardian whose engine is the test itself: the engine process only relays messages to and from the test."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import time
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from hasnmp.core.events import Extend, Extended, HeldLease
from hasnmp.errors import ConfigError, Fault
from hasnmp.runtime import (
    beginning,
    deputy,
    feeder,
    guardian,
    handover,
    kernel,
    loader,
    members,
    programs,
    pulse,
    vigil,
    watchdog,
)
from hasnmp.runtime import pills as pill_reader
from hasnmp.runtime.kernel import boottime_ns
from hasnmp.runtime.messages import Alive, Channel, FromEngine, Hello, Purpose, Run, decode, encode
from hasnmp.settings import Arbiter, Config, FenceLevel, Group, Heartbeat, NodeSettings, Service, Watchdog

MS = 1_000_000
T = TypeVar("T")


def make_config(
    run_dir: str,
    cluster: str,
    address: dict[str, Any] | None = None,
    filesystem: dict[str, str] | None = None,
    disk: bool = False,
    accept: bool = False,
    watchdog: str = "",
    pills: str = "",
    unit: str = "",
    agent: str = "",
    groups: str = "gh",
    kill_ms: int = 150,
) -> Config:
    """groups: those that the file has. unit: a systemd unit of group g. agent: of its service "other". pills: a lease disk over which node m may send n a poison pill. filesystem: options of the service "files" of group g. disk, accept: of group g. watchdog: its device, of 1 s."""
    nodes: tuple[NodeSettings, ...] = (NodeSettings("n", {"lan": "127.0.0.1"}),)
    if pills:
        nodes = (replace(nodes[0], fence=(FenceLevel("pill", "power"),)), NodeSettings("m", {"lan": "127.0.0.2"}))
    services = [Service("web", "g", "exec", {}), Service("db", "g", "exec", {})]
    if address:
        services.append(Service("vip", "g", "address", address))
    if filesystem:
        services.append(Service("files", "g", "filesystem", filesystem))
    if agent:
        services.append(Service("other", "g", agent, {}))
    if unit:
        services.append(Service("unit", "g", f"systemd:{unit}", {}))
    return Config(
        cluster,
        nodes,
        Heartbeat(kill_ms=kill_ms),
        Arbiter("disk", pills) if pills else Arbiter("none"),
        tuple(
            group
            for group in (
                Group("g", ("n",), tuple(services), disk=disk, accept_unfenced_disk=accept),
                Group("h", ("n",), (Service("mail", "h", "exec", {}),)),
            )
            if group.name in groups
        ),
        watchdog=Watchdog(watchdog, 1),
        run_dir=run_dir,
        state_dir=run_dir,
    )


def engine(
    config: Config, node: str, hello: Hello, link: Channel, lease_io: socket.socket, store: socket.socket
) -> int:
    test = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    test.connect(str(Path(config.run_dir, "engine.sock")))
    with contextlib.suppress(PermissionError):  # as an engine does: what it passes on waits for no program
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(2))
    test.send(pickle.dumps((os.getpid(), hello)))
    while True:
        if not Path(config.run_dir, "mute").exists():
            link.send(Alive())
        readable, _, _ = select.select([test, link.sock], [], [], 1)
        if test in readable:
            data = test.recv(1 << 18)
            if not data:
                return 1
            if data == b"groups?":
                test.send(pickle.dumps([group.name for group in config.groups]))
                continue
            if data.startswith(b"exit "):
                return int(data[5:])
            link.sock.setblocking(True)
            link.sock.send(data)
        if link.sock in readable:
            try:
                data = link.sock.recv(1 << 18)
            except ConnectionResetError:  # it was gone before it had read what we said last
                data = b""
            if not data:
                left = programs.end_everything(config, node)
                test.send(pickle.dumps(("guardian lost", left)))
                return 3
            test.send(data)


def silent_child(config: Config, node: str, sock: socket.socket) -> int:
    Path(config.run_dir, "lease_io.pids").open("a").write(f"{os.getpid()}\n")
    while True:
        data = sock.recv(100)
        sock.send(data)


def agent(config: Config, node: str, warm: bool, beat: Callable[[], None]) -> int:
    """It counts, as the snmp agent does; or it does not, or it dies, as the file `agent` in the folder says."""
    with Path(config.run_dir, "agent.pids").open("a") as file:
        file.write(f"{os.getpid()}\n")
    while (told := Path(config.run_dir, "agent").read_text()) != "dies":
        if told != "hangs":
            beat()
        time.sleep(0.02)
    return 1


class Stack:
    """A guardian process and its engine's brain: send(), expect(), and the pids of both."""

    def __init__(
        self,
        folder: Path,
        mode: str = "cgroup",
        address: str = "",
        netns: str = "",
        own_mounts: bool = False,
        **more: Any,
    ) -> None:
        """own_mounts: in a mount namespace of its own. more: as for make_config()."""
        self.folder, self.netns = folder, netns
        self.command_prefix = ["unshare", "-m"] if own_mounts else []
        self.more = more
        self.arguments = [str(folder), f"t{os.getpid()}", mode, address, json.dumps(more)]
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(str(folder / "engine.sock"))
        self.listener.listen()
        if mode == "nobody":
            os.chown(folder, 65534, 65534)
            (folder / "engine.sock").chmod(0o777)
        self.conn: socket.socket | None = None
        self.messages: list[Any] = []
        self.run = 0
        self.start()

    def configure(self, **more: Any) -> None:
        """Another file, from the next start on."""
        self.arguments[-1] = json.dumps(more)

    def start(self) -> Hello:
        command = [sys.executable, "-m", "tests.runtime.stack", *self.arguments]
        if self.netns:
            command = ["ip", "netns", "exec", self.netns, *command]
        command = [*self.command_prefix, *command]
        with open(self.folder / "log", "a") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log, start_new_session=True)
        return self.accept()

    def accept(self, within_s: float = 20) -> Hello:
        """Wait for the next engine."""
        self.listener.settimeout(within_s)
        before, (self.conn, _) = self.conn, self.listener.accept()
        if before:
            before.close()
        self.engine_pid, self.hello = pickle.loads(self.conn.recv(1 << 18))
        self.messages.clear()
        self.run = max(self.run, self.hello.next_run - 1)
        return self.hello  # type: ignore[no-any-return]

    def send(self, message: FromEngine) -> None:
        assert self.conn
        self.conn.send(encode(message))

    def expect(self, kind: type[T], within_s: float = 10, **values: Any) -> T:
        """The next message of this kind with these values; others that come meanwhile are kept for later calls."""
        deadline = time.monotonic() + within_s
        while True:
            for message in self.messages:
                if isinstance(message, kind) and all(getattr(message, k) == v for k, v in values.items()):
                    self.messages.remove(message)
                    return message
            assert self.conn
            self.conn.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                data = self.conn.recv(1 << 18)
            except TimeoutError:
                raise AssertionError(
                    f"no {kind.__name__} {values} within {within_s} s; {self.messages}; {self.log()}"
                ) from None
            assert data, f"the engine's end closed while {kind.__name__} was awaited: {self.log()}"
            self.messages.append(decode(data))

    def lease(self, for_ms: int, group: str = "g", token: int = 1) -> int:
        """Extend the group's lease; gives its expiry."""
        until = boottime_ns() + for_ms * MS
        self.send(Extend((HeldLease(group, token, until),)))
        assert self.expect(Extended).ok
        return until

    def program(
        self, *argv: str, service: str = "web", purpose: Purpose = Purpose.SERVICE, group: str = "g", **more: Any
    ) -> int:
        self.run += 1
        self.send(Run(self.run, group, service, argv, purpose, **more))
        return self.run

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def close(self) -> None:
        if self.process.poll() is None:
            for pid in (self.process.pid, self.engine_pid):
                try:
                    os.kill(pid, signal.SIGCONT)
                except ProcessLookupError:
                    pass
            self.process.terminate()
            if not self._told_to_exit(5):
                self.process.kill()
                self.process.wait()
        programs.end_everything(make_config(self.arguments[0], self.arguments[1]), "n")
        self.listener.close()

    def _told_to_exit(self, within_s: float) -> bool:
        """Let the guardian end in order: each engine of its, also one that the test never met, leaves. False: it does not."""
        assert self.conn
        engines, deadline = [self.conn], time.monotonic() + within_s
        with contextlib.suppress(OSError):
            self.conn.send(b"exit 0")
        while self.process.poll() is None and time.monotonic() < deadline:
            if select.select([self.listener], [], [], 0.01)[0]:
                engines.append(self.listener.accept()[0])
                with contextlib.suppress(OSError):
                    engines[-1].send(b"exit 0")
        for engine in engines:
            engine.close()
        return self.process.poll() is not None


def new_code(folder: str, words: list[str]) -> None:
    """As the new code of a handover this may be slow, or broken in every way: as the file `new` in the folder says."""
    told = Path(folder, "new").read_text() if Path(folder, "new").exists() else ""
    if "--rehearse" in words:
        if told == "faulty":
            print("there is a fault in line 7")
        if told == "vanishes":
            os.unlink(Path(folder, "python"))
        sys.exit(2 if told == "faulty" else 0)
    if handover.VARIABLE not in os.environ:
        return
    if told == "ends":
        sys.exit(3)
    if told == "hangs":
        time.sleep(1000)
    if told.startswith("slow"):
        time.sleep(float(told.split()[1]))
    if told == "ends taking":
        handover.restore = lambda *_: os._exit(3)  # type: ignore[assignment]
    if told == "hangs taking":
        handover.restore = lambda *_: time.sleep(1000)  # type: ignore[assignment]


def main() -> int:
    folder, cluster, mode, address, more, *handed = sys.argv[1:]
    new_code(folder, handed)

    def restart_machine() -> str:
        """Nothing here may ever restart the machine: it is written down instead, as a kernel that refuses it."""
        with Path(folder, "restarted").open("a") as file:
            file.write(f"{boottime_ns()}\n")
        return "not in a test"

    def ioctl(fd: int, request: int, value: Any) -> None:
        """A watchdog whose driver makes 2 s out of every wish."""
        if request == watchdog.WDIOC_GETTIMEOUT:
            value[0] = 2

    kernel.restart_machine = restart_machine
    watchdog.fcntl = types.SimpleNamespace(ioctl=ioctl)  # type: ignore[assignment]
    if mode == "ordinary":
        beginning.open_cgroups = programs.open_cgroups = lambda config, node: None  # type: ignore[attr-defined]
    if mode == "nobody":
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    if mode == "stuck":  # a process in uninterruptible sleep, as far as the guardian can see
        look = programs.Programs.leftovers

        def leftovers(self: programs.Programs, group: str) -> list[str]:
            stuck = Path(folder, "stuck").exists() and group == "g"
            return look(self, group) + (["process 1 (stuck)"] if stuck else [])

        pids = programs.Cgroups.pids

        def many(self: programs.Cgroups, path: Path) -> list[int]:  # all that a machine can have are in the group g
            there = Path(folder, "many").exists() and path in (self.group("g"), self.root)
            return list(range(1 << 22, (1 << 22) + 30_000)) if there else pids(self, path)

        programs.Cgroups.pids = many  # type: ignore[method-assign]
        programs.Cgroups.populated = lambda self, path: bool(self.pids(path))  # type: ignore[method-assign]
        programs.Programs.leftovers = leftovers  # type: ignore[method-assign]
    if Path(folder, "agent").exists():
        vigil.SILENT_NS, vigil.LOOK_NS, vigil.STEADY_NS = 1500 * MS, 100 * MS, 500 * MS
    if Path(folder, "preempted").exists():  # just before each signal
        kill, me = os.kill, os.getpid()

        def late_kill(pid: int, number: int) -> None:
            if os.getpid() == me:
                time.sleep(0.3)
            kill(pid, number)

        os.kill = late_kill
    if Path(folder, "pulse").exists():
        pulse.STEADY_NS = 100 * MS
    if mode == "scarce":  # while there is a file `forkless` this machine has no room for another process
        fork, here = os.fork, os.getpid()

        def forked() -> int:
            if os.getpid() == here and Path(folder, "forkless").exists():
                raise BlockingIOError(11, "Resource temporarily unavailable")
            return fork()

        os.fork = forked
    if Path(folder, "eager").exists():
        feeder.RETRY_S = 1
    if mode == "impatient":
        deputy.READY_NS = 1000 * MS
    if mode == "late":  # stopped between the look at the lease and the fork
        fork = programs.fork_into

        def late(where: Path) -> tuple[int, bool]:
            if Path(folder, "late").exists():
                time.sleep(1.2)
            return fork(where)

        programs.fork_into = late  # type: ignore[attr-defined]
    if mode == "reload":  # the file is folder/next: a pickled configuration, or what happens to the loader

        def load(path: str) -> Config:
            with Path(folder, "loads").open("a") as file:
                file.write(f"{os.getpid()}\n")
            said = Path(folder, "next").read_bytes()
            if said == b"hang":
                time.sleep(100)
            if said == b"die":
                os.kill(os.getpid(), signal.SIGKILL)
            if said == b"faults":
                raise ConfigError(tuple(Fault("next", line, "key", "is wrong") for line in (1, 2)))
            new: Config = pickle.loads(said)
            return new

        put = members.put

        def replace(path: str, octets: bytes, keep: str = "") -> None:
            put(path if not keep else f"{folder}/written", octets)

        loader.files = types.SimpleNamespace(load=load, parse=lambda text, path, base: load(path))  # type: ignore[assignment]
        members.put = replace
        loader.LIMIT_S = 1
        loader.make_folders = lambda config: None  # this machine's own
    ip = {"ip": address, "interface": "srv0"} if address else None
    config = make_config(folder, cluster, ip, **json.loads(more))
    wanted = agent if Path(folder, "agent").exists() else None
    reader = pill_reader.main if pill_reader.used(config) else None
    return guardian.run(config, "n", guardian.Children(engine, silent_child, pills=reader, snmp=wanted))


if __name__ == "__main__":
    sys.exit(main())
