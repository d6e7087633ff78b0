"""One real file system on the disk that both hosts reach, and a crash that loses what was not yet written to it.

Each host sees the laboratory's data disk through a loop device of its own, as two hosts do; its path is DEVICE on both.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from hasnmp.runtime.mounts import FS_IOC_SHUTDOWN, NO_LOG_FLUSH
from tests.cluster.lab import DATA, Host, Lab, sh

DEVICE = "/dev/shm/shared"  # /dev/shm is the host's own


class SharedDisk:
    """An ext4 on the data disk. Use as a context manager, within the lab's; prepare(host) after each power on."""

    def __init__(self, lab: Lab, folder: str) -> None:
        """folder: where the hosts mount it, below /srv."""
        self._lab, self._folder = lab, folder
        self._loops: list[str] = []

    def __enter__(self) -> SharedDisk:
        sh("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(self._lab.data.image))
        return self

    def __exit__(self, *_: object) -> None:
        for loop in self._loops:  # what is mounted still is let go with the host
            sh("losetup", "-d", loop, check=False)

    def prepare(self, host: Host) -> None:
        loop = host.run("losetup", "--find", "--show", DATA).strip()
        self._loops.append(loop)
        host.run("ln", "-s", loop, DEVICE)
        host.run("mount", "-t", "tmpfs", "tmpfs", "/srv")
        host.run("mkdir", self._folder)

    @contextlib.contextmanager
    def mounted(self, host: Host) -> Iterator[Path]:
        """The disk in a host, as a path of this machine, while no daemon has it."""
        host.run("mount", DEVICE, self._folder)
        try:
            yield host.path(self._folder)
        finally:
            host.run("umount", self._folder)

    def crash(self, host: Host) -> int:
        """The host's power goes, and what its kernel had not written to the disk is lost. Returns when it was heard of last.

        By itself the end of a host unmounts in order. So the disk is cut off first, and before that the cables, so that
        nobody hears what the services say to that.
        """
        fault_ns = self._lab.pull(host.name, "lan")
        self._lab.pull(host.name, "cross")
        self.cut(host)
        host.power_off()
        self._lab.reconnect()
        return fault_ns

    def cut(self, host: Host) -> None:
        """What the host's kernel has not written to the disk is lost; it has to be unmounted."""
        fd = os.open(host.path(self._folder), os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, FS_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(fd)
