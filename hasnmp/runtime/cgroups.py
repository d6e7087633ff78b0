"""The control groups (version 2) of one node's programs: what is in a folder can be found, and ended, whole.

    <cgroup2 mount>/hasnmp-<cluster>-<node>/<group>/<service>       a service's program
                                           /<group>/+<run>          a check, a command that stops a service

A program can leave its process group and its session, but not its control group. Source: cgroups(7),
Documentation/admin-guide/cgroup-v2.rst (cgroup.kill, cgroup.events).
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from hasnmp.runtime import proc
from hasnmp.settings import Config

RUN_DIR = "/run/hasnmp"


def find_mount() -> Path | None:
    """Where version 2 is mounted: alone, or beside version 1."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.startswith("cgroup2 "):
            return Path(before.split()[4].replace("\\040", " "))
    return None


class Cgroups:
    """Made by open_cgroups(). Folders are made when needed and removed when they are empty.

    Where somebody has taken the mount away, or put another over it, the processes are still in their groups: they are found
    by what /proc tells of each, and nothing is started any more.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def _is_gone(self) -> bool:
        return not (self.root.parent / "cgroup.procs").exists()

    def make(self, *names: str) -> Path:
        """Raises OSError."""
        path = self.root.joinpath(*names)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def anew(self, path: Path) -> bool:
        """Make this folder, or make it anew. Raises OSError.

        False: processes are in it, and it may have been killed once. Whoever is born in one like that is killed at once by
        Linux 6.13 and later (seen with 6.18), however long ago that was; who moves there is not.
        """
        if self._is_gone():
            raise OSError(errno.ENODEV, "the control groups are not mounted any more", str(self.root.parent))
        with contextlib.suppress(OSError):
            path.rmdir()
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            return False
        return True

    def group(self, group: str) -> Path:
        return self.root / group

    def populated(self, path: Path) -> bool:
        """Does any process live in the folder or below it?"""
        try:
            return "populated 1" in (path / "cgroup.events").read_text()
        except FileNotFoundError:
            return self._is_gone() and bool(self.pids(path))
        except OSError as error:
            # ENODEV: the folder was removed while it was read.
            return error.errno != errno.ENODEV and bool(self.pids(path))

    def pids(self, path: Path) -> list[int]:
        """Every process in one of our folders and below it."""
        if self._is_gone():
            name = f"/{path.relative_to(self.root.parent)}/"
            return [pid for pid in proc.all_pids() if name in proc.control_group(pid) + "/"]
        return self.pids_in(path)

    @staticmethod
    def pids_in(path: Path) -> list[int]:
        """Every process in any folder of version 2 and below it."""
        found = []
        for folder, _, _ in os.walk(path):
            with contextlib.suppress(OSError):
                found += [int(word) for word in Path(folder, "cgroup.procs").read_text().split()]
        return found

    def kill(self, path: Path) -> None:
        """As kill_in(), for one of our folders."""
        for pid in self.pids(path) if self._is_gone() else ():
            proc.kill(pid)
        self.kill_in(path)

    @classmethod
    def kill_in(cls, path: Path) -> None:
        """SIGKILL to every process in the folder and below it, those being forked now included."""
        try:
            fd = os.open(path / "cgroup.kill", os.O_WRONLY | os.O_CLOEXEC)  # never to be created
            try:
                os.write(fd, b"1")
            finally:
                os.close(fd)
        except OSError:
            # A kernel before 5.14, or mounted read-only since. The caller repeats this until nothing is left.
            for pid in cls.pids_in(path):
                proc.kill(pid)

    @staticmethod
    def remove(path: Path) -> None:
        """Remove the folder and those below it, as far as they are empty."""
        for folder, _, _ in os.walk(path, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(folder)


def folder_name(config: Config, node: str) -> str:
    """Two installations on one machine (a demonstration) differ by their run_dir."""
    name = f"hasnmp-{config.cluster}-{node}"
    return name if config.run_dir == RUN_DIR else name + "@" + config.run_dir.strip("/").replace("/", "_")[-80:]


def open_cgroups(config: Config, node: str) -> Cgroups | None:
    """None: there is no version 2, or it can't be written by this user."""
    mount = find_mount()
    if mount is None:
        return None
    cgroups = Cgroups(mount / folder_name(config, node))
    try:
        trial = cgroups.make("+trial")
        if not os.access(trial / "cgroup.procs", os.W_OK) or not os.access(mount / "cgroup.procs", os.W_OK):
            return None
        cgroups.kill(trial)  # also warms up what will be needed when seconds count
        trial.rmdir()
    except OSError:
        return None
    return cgroups
