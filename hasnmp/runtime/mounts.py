"""The file systems of the groups: which are mounted here, and how one is cut off from its disk by force.

To kill the programs is not enough: what they wrote lies in the kernel's memory, and the kernel goes on writing it to the
disk after the lease's end. FS_IOC_SHUTDOWN ends that: nothing that is in memory goes to the disk any more, and the next
mount replays the journal, as after a power cut. Source: ext4 and xfs, fs/ext4/ioctl.c, fs/xfs/xfs_fsops.c.

All that may touch the disk is done in forked helpers, so that a frozen disk can't hold up the guardian. What can't be
confirmed counts as not ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import signal
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path

from hasnmp.runtime.belongings import Belongings
from hasnmp.runtime.kernel import boottime_ns, prefer_this_process, set_name

MS = 1_000_000
FS_IOC_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32)
NO_LOG_FLUSH = 2  # *_GOING_FLAGS_NOLOGFLUSH: what is in memory is lost, the journal's newest part too
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8
RETRY_NS = 50 * MS  # between two tries to cut one off: each is a fork
COVERED = 200  # exit status of a helper: something else is mounted over it
_NO_SHUTDOWN = (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL)  # a file system without that call

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of /proc/PID/mountinfo (proc(5)). number: "7:0"; "0:..." = no block device of its own."""

    number: str
    directory: str
    options: tuple[str, ...]
    kind: str
    source: str
    super_options: tuple[str, ...]

    @property
    def read_only(self) -> bool:
        return "ro" in self.options or "ro" in self.super_options


def _unescaped(text: str) -> str:
    for code, character in (("040", " "), ("011", "\t"), ("012", "\n"), ("043", "#"), ("134", "\\")):
        text = text.replace("\\" + code, character)
    return text


def mounted() -> list[Mount]:
    """Every mount that this process sees, the newest last. Asks the kernel alone, never a disk."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        words, (kind, source, more) = before.split(), after.split(" ", 2)
        found.append(
            Mount(words[2], _unescaped(words[4]), tuple(words[5].split(",")), kind, _unescaped(source), tuple(more.split(",")))
        )  # fmt: skip
    return found


def device_path(device: str) -> str:
    """The path of a device that is given as mount(8) takes it: UUID=..., LABEL=... too."""
    word, _, value = device.partition("=")
    return f"/dev/disk/by-{word.lower()}/{value}" if word in ("UUID", "LABEL", "PARTUUID", "PARTLABEL") else device


def device_number(device: str) -> str:
    """ "7:0" of a block device; "" if there is none. Only below /dev: any other folder may lie on a disk that hangs."""
    if not device.startswith("/dev/"):
        return ""
    try:
        number = os.stat(device).st_rdev
    except OSError:
        return ""
    return f"{os.major(number)}:{os.minor(number)}" if number else ""


def mounts_of(device: str, directory: str, among: list[Mount] | None = None) -> list[Mount]:
    """Where this device is mounted (also elsewhere than in its directory), the newest first.

    If the device is not there any more, or is none (a network file system), it is what is mounted in the directory. The
    root's file system is never one of them, whatever a configuration says.
    """
    among, device = mounted() if among is None else among, device_path(device)
    number = device_number(device)
    real = os.path.realpath(device) if number else ""
    root = {mount.number for mount in among if mount.directory == "/"}

    def belongs(mount: Mount) -> bool:
        if mount.number in root:
            return False
        if number and not mount.number.startswith("0:"):
            return mount.number == number
        if number and mount.source.startswith("/dev/"):  # btrfs: its numbers are its own
            return os.path.realpath(mount.source) == real
        return not number and mount.directory == directory

    return [mount for mount in reversed(among) if belongs(mount)]


def unmount(directory: str, flags: int = 0) -> None:
    """umount2(2). Raises OSError."""
    if _libc.umount2(os.fsencode(directory), flags | UMOUNT_NOFOLLOW):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), directory)


def cut_off(mount: Mount) -> int:
    """Shut the file system down, then take it out of the folders. May block for ever: call it in a helper.

    Gives an errno, 0 if that is confirmed. Where the file system can't be shut down it is unmounted like any: what is in
    memory goes to the disk, and only if that ends is it confirmed.
    """
    try:
        fd = os.open(mount.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return 0  # it went with the file system that it was mounted in
        if error.errno != errno.EIO:
            return error.errno or COVERED
        # xfs opens nothing of a file system that is shut down; the root's folder itself is always in memory.
    else:
        there = os.fstat(fd).st_dev
        if not mount.number.startswith("0:") and f"{os.major(there)}:{os.minor(there)}" != mount.number:
            return 0 if mount not in mounted() else COVERED
        try:
            fcntl.ioctl(fd, FS_IOC_SHUTDOWN, struct.pack("=I", NO_LOG_FLUSH))
        except OSError as error:
            os.close(fd)
            fd = -1
            if error.errno not in _NO_SHUTDOWN:
                return error.errno or COVERED
            try:
                unmount(mount.directory)
                return 0
            except OSError as problem:
                return problem.errno or COVERED
        finally:
            if fd >= 0:
                os.close(fd)
    try:
        unmount(mount.directory, MNT_DETACH)
    except OSError as error:
        return 0 if error.errno in (errno.EINVAL, errno.ENOENT) else error.errno or COVERED
    return 0


@dataclass(slots=True)
class Helper:
    """A forked process that cuts one mount off. pid 0: it ended, with `status`."""

    mount: Mount
    group: str
    pid: int
    began_ns: int
    status: int = 0


@dataclass(slots=True)
class GroupMounts:
    """What the groups may have mounted, and the helpers that cut it off."""

    belongings: Belongings
    helpers: dict[tuple[str, str], Helper] = field(default_factory=dict)  # (group, directory)

    def of(self, group: str) -> list[Mount]:
        """What is mounted now of the group."""
        places = self.belongings.of(group).mounts
        if not places:
            return []
        among = mounted()
        return [mount for device, directory in places for mount in mounts_of(device, directory, among)]

    def left(self, group: str) -> list[str]:
        """What of the group is mounted, or still being cut off, a text each."""
        found = {m.directory: f"file system {m.directory} ({m.source})" for m in self.of(group)}
        for (of, directory), helper in self.helpers.items():
            if of == group and helper.pid:
                found[directory] = f"file system {directory} ({helper.mount.source}): being cut off from its disk"
            elif of == group and helper.status and directory in found:
                why = "covered by another mount" if helper.status == COVERED else os.strerror(helper.status)
                found[directory] += f": can't be cut off from its disk: {why}"
        return list(found.values())

    def cut(self, group: str, now: int) -> None:
        """Begin to cut off what is mounted of the group; left() says when that is done."""
        for mount in self.of(group):
            key = group, mount.directory
            helper = self.helpers.get(key)
            if helper and (helper.pid or now - helper.began_ns < RETRY_NS):
                continue
            with contextlib.suppress(OSError):  # no process: the caller tries again
                self.helpers[key] = Helper(mount, group, self._fork(mount), now)

    def _fork(self, mount: Mount) -> int:
        pid = os.fork()
        if pid:
            return pid
        status = COVERED
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGCONT):
                signal.signal(number, signal.SIG_DFL)
            set_name("hasnmp-cut-off")
            prefer_this_process()  # the guardian waits for it against the lease's end
            # What the parent holds open, sockets and the watchdog, must not be held by one that hangs in a dead disk.
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))
            status = cut_off(mount)
        finally:
            os._exit(status)

    def reaped(self, pid: int, status: int) -> bool:
        """Take what waitpid said. False: no helper of ours."""
        for helper in self.helpers.values():
            if helper.pid == pid:
                helper.pid = 0
                code = os.waitstatus_to_exitcode(status)
                helper.status = code if code >= 0 else errno.EINTR
                return True
        return False

    def settle(self, group: str) -> None:
        """The group has ended: what its helpers said is done with."""
        for key in [key for key in self.helpers if key[0] == group]:
            del self.helpers[key]

    def cut_all(self, within_ms: int) -> tuple[list[str], list[str]]:
        """Cut off every group's, waiting for it at most so long. Gives what was found, and what of it is left."""
        groups = self.belongings.groups()
        found: dict[str, None] = {}
        deadline = time.monotonic() + within_ms / 1000
        while True:
            left = [line for group in groups for line in self.left(group)]
            for group in groups:
                found.update(dict.fromkeys(f"file system {m.directory} ({m.source})" for m in self.of(group)))
                self.cut(group, boottime_ns())
            if not left or time.monotonic() > deadline:
                break
            time.sleep(0.002)
            for helper in self.helpers.values():
                if helper.pid:
                    with contextlib.suppress(ChildProcessError):
                        pid, status = os.waitpid(helper.pid, os.WNOHANG)
                        if pid:
                            self.reaped(pid, status)
        if not left:
            self.helpers.clear()
        return list(found), left
