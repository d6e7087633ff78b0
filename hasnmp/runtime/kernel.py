"""What the guardian asks of the kernel and of systemd, and Python 3.11 has no call for. Linux only.

Everything that a process may be refused (memory lock, priority) gives a note instead of an error: it makes this node less
certain under load, and the operator is told, but it is no reason to not run.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 1, 15, 36
MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4
CLOCK_BOOTTIME, TFD_TIMER_ABSTIME = 7, 1
TFD_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC
F_SETPIPE_SZ = 1031
FIONREAD = 0x541B
PRIORITY = 2  # of SCHED_RR: above every ordinary process is all that is wanted
STARTING = 1  # of SCHED_RR, for a program that is being started: below those that must not be late
RB_AUTOBOOT = 0x01234567  # reboot(2): restart at once, without a sync
SYS_CLONE3, CLONE_INTO_CGROUP = 435, 0x200000000  # linux/sched.h; the number is the same on every architecture

_libc = ctypes.CDLL(None, use_errno=True)
_libc_with_lock = ctypes.PyDLL(None, use_errno=True)  # keeps Python's lock during a call: its own view of a fork
_libc_with_lock.syscall.restype = ctypes.c_long


class _TimerSpec(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("interval_s", "interval_ns", "value_s", "value_ns")]


def boottime_ns() -> int:
    """CLOCK_BOOTTIME: runs on while the machine is suspended, as the peers' clocks do."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_time(pid: int) -> int:
    """When the process started, in clock ticks; 0 if there is none. pid and this together are never used twice."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


class BootTimer:
    """A file descriptor that becomes readable at a moment of CLOCK_BOOTTIME, exact to microseconds."""

    def __init__(self) -> None:
        self.fd = _libc.timerfd_create(CLOCK_BOOTTIME, TFD_FLAGS)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._at_ns = 0

    def fileno(self) -> int:
        return int(self.fd)

    def set(self, at_ns: int) -> None:
        """0 = never. A moment that has passed makes it readable at once."""
        if at_ns != self._at_ns:
            spec = _TimerSpec(0, 0, at_ns // 1_000_000_000, at_ns % 1_000_000_000)
            _libc.timerfd_settime(self.fd, TFD_TIMER_ABSTIME, ctypes.byref(spec), None)
            self._at_ns = at_ns

    def read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, 8)
        self._at_ns = 0

    def close(self) -> None:
        os.close(self.fd)


def fork_into(folder: Path) -> tuple[int, bool]:
    """Fork a child that is in this control group from its first moment on. Gives (pid, False): it has to go there itself.

    To move a process into a group waits for the kernel's RCU grace period, 5 to 25 ms of every start; to be born there
    does not. It is os.fork() without Python's handlers, so only for a process without threads and a child that executes
    another program. Where the kernel can't (before 5.7, or a sandbox forbids it), it is os.fork(). Raises OSError.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        arguments = struct.pack("=11Q", CLONE_INTO_CGROUP, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, fd)
        pid = _libc_with_lock.syscall(SYS_CLONE3, arguments, ctypes.c_size_t(len(arguments)))
    finally:
        os.close(fd)
    return (pid, True) if pid >= 0 else (os.fork(), False)


def set_name(name: str) -> None:
    """The name that ps, top and the kernel's log show (15 octets)."""
    _libc.prctl(PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def die_with(parent: int) -> None:
    """End this process when `parent`, which forked it, ends; at once, if it has ended meanwhile.

    Lost by exec of a set-user-ID program and by a change of user: call it after that.
    """
    _libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def adopt_orphans() -> None:
    """Make this process the parent of what its descendants leave behind, instead of init."""
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def set_oom_score(score: int) -> str:
    """Gives a note, "" if done."""
    try:
        Path("/proc/self/oom_score_adj").write_text(str(score))
    except OSError as error:
        return f"not exempt from the OOM killer: {error.strerror}"
    return ""


def prefer_this_process() -> list[str]:
    """Run before ordinary processes. Forked children do not inherit it. Gives notes."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(PRIORITY))
    except OSError as error:
        return [f"no real-time priority: {error.strerror}"]
    return []


@contextlib.contextmanager
def hurried_children() -> Iterator[None]:
    """What is forked within runs before ordinary processes until it calls be_ordinary(): on a busy machine a program would
    else wait a tenth of a second for its first instruction. Without permission nothing differs."""
    before = os.sched_getscheduler(0)
    if before & ~os.SCHED_RESET_ON_FORK == os.SCHED_RR:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(STARTING))
        try:
            yield
        finally:
            os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(PRIORITY))
    else:
        yield


def be_ordinary() -> None:
    """Give up what hurried_children() gave."""
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


MOST_FILES = 65_536  # some container engines allow a thousand million, and where close_range(2) is missing all are closed one by one
_given: tuple[int, int] | None = None  # RLIMIT_NOFILE as this process was started with


def take_descriptors() -> None:
    """Open as many files as may be, up to MOST_FILES. The usual soft limit of 1024 is for programs that use select(2), and a check that finds no
    descriptor would be a service that does not answer. Forked children inherit it."""
    global _given
    _given = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = _given
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def give_back_descriptors() -> None:
    """What is executed from here on has the limit that take_descriptors() found."""
    if _given is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, _given)


def lock_memory() -> list[str]:
    """Keep in memory what was touched once (and no more: the children share these pages). Gives notes."""
    if _libc.mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT):
        return [f"memory is not locked: {os.strerror(ctypes.get_errno())}"]
    return []


def restart_machine() -> str:
    """Restart this machine at once, without a sync. In a namespace of processes it ends that one only.

    Returns only where it is refused: why.
    """
    _libc.reboot(RB_AUTOBOOT)
    return os.strerror(ctypes.get_errno())


def notifier(address: str | None) -> Callable[[str], None]:
    """sd_notify(3): a function that tells systemd, and does nothing where there is no systemd that waits for it."""
    if not address:
        return lambda text: None
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    to = "\0" + address[1:] if address.startswith("@") else address

    def notify(text: str) -> None:
        with contextlib.suppress(OSError):
            sock.sendto(text.encode(), to)

    return notify
