"""Whole machines in namespaces: hosts a, b and client on two bridges, which can lose power, cables and their lease disk.

    a, b      what hasnmp runs on; lan 192.0.2.11 and .12 (2001:db8::11, ::12), cross 198.51.100.11 and .12
    client    on the lan only as far as clients are concerned: 192.0.2.50 (2001:db8::50)

A host is a network namespace + `unshare -m -p -u -i` + init.py as its process 1. A further namespace holds the bridges.
Power off is SIGKILL to process 1: the kernel takes everything else with it. In every host /run/lab/state is its own
folder, /run/lab/etc the lab's, /run/lab/lease its view of the lease disk and /run/lab/data of a disk for services (disk.py), and
/run/lab/small a file system of its own that is soon full and outlives a power cut.

Everything that is made is named after the prefix and this process, and removed by close(), or by sweep() of the next run.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

PREFIX = "hasnmplab"
HERE = Path(__file__).parent
PROJECT = HERE.parents[1]
LINKS = {"lan": ("192.0.2.", "2001:db8::"), "cross": ("198.51.100.", "2001:db8:c::")}
NUMBERS = {"a": 11, "b": 12, "client": 50}
ETC, STATE, LEASE = "/run/lab/etc", "/run/lab/state", "/run/lab/lease"  # inside a host
DATA, SMALL = "/run/lab/data", "/run/lab/small"
SMALL_OCTETS = 2 << 20
PATIENCE = 3
T = TypeVar("T")
_runs = itertools.count()


def sh(*argv: str, text: str | None = None, check: bool = True, timeout: float = 20) -> str:
    """Run a program; its output. Raises AssertionError: it failed, with what it said."""
    done = subprocess.run(argv, input=text, stdin=subprocess.DEVNULL if text is None else None, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout * PATIENCE)  # fmt: skip
    assert not check or done.returncode == 0, f"{' '.join(argv)}: exit {done.returncode}: {done.stdout}"
    return done.stdout


def wait_for(what: Callable[[], T], seconds: float, why: object = "", pause_s: float = 0.02) -> T:
    """Ask until the answer is true; the answer. why: text, or a function that makes it, for the failure.

    seconds: what is enough on a quiet machine; it keeps from hanging, and a busy one gets more. Where it matters how long
    something took, the times of it are asserted: of the events, of the client's answers.
    """
    deadline = time.monotonic() + seconds * PATIENCE
    while not (answer := what()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds * PATIENCE} s: {why() if callable(why) else why}")
        time.sleep(pause_s)
    return answer


def mac(host: str, link: str) -> str:
    return f"02:00:00:00:{list(LINKS).index(link):02x}:{NUMBERS[host]:02x}"


class Host:
    """One machine. pid: of its process 1 as this machine counts, 0 while the power is off."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab, self.name, self.netns = lab, name, f"{lab.name}-{name}"
        self.state = lab.folder / name
        self.state.mkdir()
        self.small = lab.folder / f"{name}.small"
        self.small.mkdir()
        sh("mount", "-t", "tmpfs", "-o", f"size={SMALL_OCTETS}", "tmpfs", str(self.small))
        self.pid = 0
        self.switch = threading.RLock()  # a power switch of a test's may be pressed in another thread
        self._shell: subprocess.Popen[str] | None = None

    def power_on(self) -> None:
        with self.switch:
            self._power_on()

    def _power_on(self) -> None:
        assert not self.pid
        for link, (v4, v6) in LINKS.items():
            number = NUMBERS[self.name]
            words = f"addr replace {v4}{number}/24 dev {link}\naddr replace {v6}{number}/64 dev {link} nodad\n"
            if link == "lan" and self.name != "client":
                # A host that asks for the client's MAC names the virtual address as its own: that would move the client.
                words += "".join(f"neigh replace {net}{NUMBERS['client']} lladdr {mac('client', link)} dev {link} "
                                 "nud permanent\n" for net in (v4, v6))  # fmt: skip
            sh("ip", "-n", self.netns, "-batch", "-", text=words)
        binds = [
            f"{self.state}={STATE}",
            f"{self.lab.etc}={ETC}",
            f"{self.small}={SMALL}",
        ]
        if self.name in self.lab.disks:
            binds.append(f"{self.lab.disks[self.name]}={LEASE}")
        if self.name in self.lab.data.views:
            binds.append(f"{self.lab.data.views[self.name]}={DATA}")
        binds += [f"{device}={path}" for path, device in self.lab.devices.get(self.name, {}).items()]
        console = open(self.state / "console", "a")
        self._shell = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{self.netns}", "unshare", "-m", "-p", "-u", "-i", "-T",
             "--boottime", str(self.lab.offsets_s.get(self.name, 0)), "--fork", "--mount-proc",
             sys.executable, "-I", "-S", str(HERE / "init.py"), self.name, *binds],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=console, text=True, start_new_session=True,
        )  # fmt: skip
        console.close()
        assert self._shell.stdout and self._shell.stdout.readline() == "ready\n", f"host {self.name} does not start"
        children = Path(f"/proc/{self._shell.pid}/task/{self._shell.pid}/children").read_text().split()
        self.pid = int(children[0])

    def runs(self) -> bool:
        """Is it on? A machine may also have ended by itself: reboot(2) in its namespace ends its process 1."""
        return self._shell is not None and self._shell.poll() is None

    def power_off(self) -> int:
        """At once, as by the switch. Returns when, in CLOCK_MONOTONIC nanoseconds."""
        with self.switch:
            return self._power_off()

    def _power_off(self) -> int:
        at_ns = time.monotonic_ns()
        if self.pid and self._shell:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            # The dead host's kernel would go on answering ARP and ping for its addresses: a network namespace lives on.
            words = "".join(f"addr flush dev {link}\n" for link in LINKS)
            sh("ip", "-n", self.netns, "-batch", "-", text=words)
            self.lab.pulled.discard(self.name)  # it is plugged in again at the next power on
            self.lab.disk(self.name, "ok")  # a process that hangs in a frozen disk would hold up the end of the others
            self.lab.data_disk(self.name, "ok")
            self._shell.wait(20)
            sh("ip", "netns", "exec", self.netns, "nft", "flush", "ruleset")
        self.pid, self._shell = 0, None
        return at_ns

    def command(self, *argv: str) -> list[str]:
        return ["nsenter", "-t", str(self.pid), "-m", "-p", "-n", "-u", "-i", "-T", "--", *argv]

    def run(self, *argv: str, check: bool = True, timeout: float = 20, text: str | None = None) -> str:
        return sh(*self.command(*argv), check=check, timeout=timeout, text=text)

    def spawn(self, *argv: str, log: str = "", **more: Any) -> subprocess.Popen[bytes]:
        """Start a program that ends with the host. log: file in the host's folder for its output, else none is kept."""
        with open(self.state / log if log else os.devnull, "ab") as out:
            more = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": out, "cwd": PROJECT, **more}
            return subprocess.Popen(self.command(*argv), start_new_session=True, **more)

    def path(self, inside: str) -> Path:
        """A path of the host's own file systems, as this process can open it."""
        return Path(f"/proc/{self.pid}/root{inside}")

    def processes(self) -> dict[int, str]:
        """Every process of the host: pid as this machine counts -> comm."""
        if not self.runs():
            return {}
        try:
            mine = os.stat(f"/proc/{self.pid}/ns/pid").st_ino
        except OSError:
            return {}  # it ended by itself just now
        found = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with contextlib.suppress(OSError):
                    if os.stat(f"/proc/{entry}/ns/pid").st_ino == mine:
                        found[int(entry)] = Path(f"/proc/{entry}/comm").read_text().strip()
        return found

    def signal(self, number: signal.Signals, pids: Iterable[int]) -> int:
        """Send a signal to each, as close together as can be. Returns when, CLOCK_MONOTONIC nanoseconds."""
        at_ns = time.monotonic_ns()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return at_ns


class Disk:
    """An image, and each host's view of it, which can fail (disk.py)."""

    def __init__(self, lab: Lab, name: str, octets: int) -> None:
        self.image = lab.images / f"{name}.img"
        with open(self.image, "wb") as file:
            file.truncate(octets)
        self.views = {host: lab.folder / f"{name}-{host}" for host in ("a", "b")}
        for view in self.views.values():
            view.touch()
        self._lock = threading.Lock()
        self._server = subprocess.Popen(
            [sys.executable, "-I", str(HERE / "disk.py"), str(self.image), *map(str, self.views.values())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        assert self._server.stdout and self._server.stdout.readline() == "ready\n", f"disk {name} does not start"

    def command(self, host: str, mode: str) -> None:
        assert self._server.stdin and self._server.stdout
        with self._lock:
            self._server.stdin.write(f"{list(self.views).index(host)} {mode}\n")
            self._server.stdin.flush()
            assert self._server.stdout.readline() == "done\n", "the disk's server has ended"

    def close(self) -> None:
        self._server.kill()
        self._server.wait(10)


class Lab:
    """The hosts and what is between them. Use as a context manager."""

    def __init__(self, lease_disk: bool = True, offsets_s: Mapping[str, int] | None = None) -> None:
        """offsets_s: host -> how far its CLOCK_BOOTTIME is ahead of this machine's; 0 or more."""
        sweep()
        self.offsets_s = offsets_s or {}
        self.name = f"{PREFIX}-{os.getpid()}-{next(_runs)}"
        self.folder = Path(tempfile.mkdtemp(prefix=f"{self.name}-"))
        self.etc = self.folder / "etc"
        self.etc.mkdir()
        # The disks are memory: how long the machine's own disk takes while others use it is no part of any test.
        self.images = self.folder / "images"
        self.images.mkdir()
        sh("mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", str(self.images))
        self.bridges = f"{self.name}-net"
        self.disks: dict[str, Path] = {}  # each host's view of the lease disk
        self.devices: dict[
            str, dict[str, str]
        ] = {}  # host -> path in it, in /run or /dev/shm: a device of this machine
        self.pulled: set[str] = set()  # hosts where the lease disk's path names nothing any more
        self._lease: Disk | None = None
        self._blocks: set[tuple[str, str, str]] = set()
        self._down: set[tuple[str, str]] = set()
        self.hosts: dict[str, Host] = {}
        try:
            self._wire()
            self.data = Disk(self, "data", 64 << 20)
            if lease_disk:
                self._lease = Disk(self, "lease", 1 << 20)
                self.disks = self._lease.views
            for name in NUMBERS:
                self.hosts[name] = Host(self, name)
                self.hosts[name].power_on()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def _wire(self) -> None:
        namespaces = {name: f"{self.name}-{name}" for name in NUMBERS}
        sh("ip", "-batch", "-", text="".join(f"netns add {ns}\n" for ns in [self.bridges, *namespaces.values()]))
        words = ""
        for link in LINKS:
            words += f"link add {link} type bridge stp_state 0 forward_delay 0 mcast_snooping 0\nlink set {link} up\n"
            for name, ns in namespaces.items():
                port = f"{name}-{link}"
                words += f"link add {port} type veth peer name {link} address {mac(name, link)} netns {ns}\n"
                words += f"link set {port} master {link}\nlink set {port} up\n"
        sh("ip", "-n", self.bridges, "-batch", "-", text=words)
        for ns in namespaces.values():
            # Without DAD an IPv6 address serves at once, as the IPv4 ones do; none makes one up by itself.
            sh("ip", "netns", "exec", ns, "sysctl", "-qw", "net.ipv6.conf.all.accept_dad=0",
               "net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.all.accept_ra=0")  # fmt: skip
            sh("ip", "-n", ns, "-batch", "-", text="link set lo up\n" + "".join(f"link set {x} up\n" for x in LINKS))

    # ------------------------------------------------------------------------------------------------- cables

    def block(self, source: str, target: str, link: str) -> int:
        """Frames from source to target are lost on the link, without a sign of it. Returns when."""
        at_ns = time.monotonic_ns()
        self._blocks.add((source, target, link))
        self._filter()
        return at_ns

    def separate(self, one: str, other: str, *links: str) -> int:
        """Both ways, on these links (none given: every link). Returns when."""
        at_ns = time.monotonic_ns()
        for link in links or LINKS:
            self._blocks |= {(one, other, link), (other, one, link)}
        self._filter()
        return at_ns

    def pull(self, host: str, link: str) -> int:
        """Pull the host's cable: its interface has no carrier. Returns when."""
        at_ns = time.monotonic_ns()
        self._down.add((host, link))
        sh("ip", "-n", self.bridges, "link", "set", f"{host}-{link}", "down")
        return at_ns

    def heal(self) -> None:
        """Everything that was cut, and every disk, as new."""
        self.reconnect()
        for name in self.data.views:
            self.disk(name, "ok")
            self.data_disk(name, "ok")

    def reconnect(self) -> None:
        """Every cable is in, and nothing is filtered."""
        for host, link in self._down:
            sh("ip", "-n", self.bridges, "link", "set", f"{host}-{link}", "up")
        self._down.clear()
        if self._blocks:
            self._blocks.clear()
            self._filter()

    def _filter(self) -> None:
        rules = "".join(f'iifname "{s}-{link}" oifname "{t}-{link}" drop\n' for s, t, link in sorted(self._blocks))
        table = "add table bridge cut\ndelete table bridge cut\n"
        table += f"table bridge cut {{ chain forward {{ type filter hook forward priority 0;\n{rules}}}\n}}\n"
        sh("ip", "netns", "exec", self.bridges, "nft", "-f", "-", text=table)

    # -------------------------------------------------------------------------------------------------- the disks

    def disk(self, host: str, mode: str) -> int:
        """The host's view of the lease disk becomes one of disk.py's, or "pulled": its path is gone. Returns when."""
        at_ns = time.monotonic_ns()
        if mode == "pulled":
            self.hosts[host].run("umount", "-l", LEASE)
            self.hosts[host].run("rm", LEASE)
            self.pulled.add(host)
            return at_ns
        if host in self.pulled:
            self.pulled.discard(host)
            self.hosts[host].run("touch", LEASE)
            self.hosts[host].run("mount", "--bind", str(self.disks[host]), LEASE)
        if self._lease and host in self.disks:
            self._lease.command(host, mode)
        return at_ns

    def data_disk(self, host: str, mode: str) -> int:
        """The host's view of the data disk becomes one of disk.py's. Returns when."""
        at_ns = time.monotonic_ns()
        if host in self.data.views:
            self.data.command(host, mode)
        return at_ns

    # ---------------------------------------------------------------------------------------------------- the end

    def close(self) -> None:
        for host in self.hosts.values():
            for pid in host.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
            with contextlib.suppress(Exception):
                host.power_off()
        for disk in (self._lease, self.data):
            if disk:
                disk.close()
        _remove(self.name)


# ------------------------------------------------------------------------------------------------------- clean-up


def _remove(name: str) -> None:
    """Everything that bears the name of one lab. What a host may still hold goes with the host's own namespaces."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        target = line.split()[4]
        if f"/{name}-" in target:
            sh("umount", "-l", target, check=False)
    for ns in os.listdir("/run/netns") if os.path.isdir("/run/netns") else ():
        if ns.startswith(name + "-"):
            sh("ip", "netns", "del", ns, check=False)
    for line in sh("losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE").splitlines():
        if f"/{name}-" in line:
            sh("losetup", "--detach", line.split()[0], check=False)
    for folder in Path(tempfile.gettempdir()).glob(f"{name}-*"):
        shutil.rmtree(folder, ignore_errors=True)
    for folder in _cgroups(name):
        with contextlib.suppress(OSError):
            (folder / "cgroup.kill").write_text("1")
        for path, _, _ in os.walk(folder, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(path)


def cluster_name(name: str) -> str:
    """A lab's cluster, which is part of its control groups' names."""
    return name.replace(PREFIX, "lab")


def _cgroups(name: str) -> Iterator[Path]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if " - cgroup2 " in line:
            yield from Path(line.split()[4]).glob(f"hasnmp-{cluster_name(name)}-*")
            return


def sweep() -> None:
    """Remove what a run left that was ended by force: what is named after a process that no longer lives."""
    names = set()
    places = [Path("/run/netns"), Path(tempfile.gettempdir())]
    for entry in (entry for place in places if place.is_dir() for entry in os.listdir(place)):
        if found := re.match(rf"{PREFIX}-(\d+)-\d+(?=-)", entry):
            if not os.path.exists(f"/proc/{found[1]}"):
                names.add(found[0])
    for name in names:
        for pid in _processes_in(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _remove(name)


def _processes_in(name: str) -> list[int]:
    """Every process in the network namespaces of a lab, and its lease disk's server."""
    found = []
    for ns in Path("/run/netns").glob(f"{name}-*") if os.path.isdir("/run/netns") else ():
        found += [int(pid) for pid in sh("ip", "netns", "pids", ns.name, check=False).split() if pid.isdigit()]
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = entry.read_bytes()
            if f"/{name}-".encode() in words and b"disk.py" in words:
                found.append(int(entry.parent.name))
    return found
