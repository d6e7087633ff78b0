"""A real file system that both hosts reach, each through a loop device of its own, as two hosts do; and a crash that loses what
was not yet written to it. The groups that stand on it are read from conf/services, the very files that an administrator copies."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hasnmp.runtime.mounts import FS_IOC_SHUTDOWN, NO_LOG_FLUSH
from tests.cluster.lab import PROJECT, STATE, Host, Lab, sh
from tests.cluster.pair import Group

DEVICE = "/dev/shm/volume"  # /dev/shm is the host's own
FOLDER = f"{STATE}/srv"  # where the hosts mount it
SERVICES = PROJECT / "conf" / "services"


@dataclass(frozen=True)
class FromFile(Group):
    """A group as a file of conf/services has it."""

    text: str = ""

    def yaml(self) -> str:
        return self.text


def substituted(file: str, words: dict[str, str]) -> str:
    """A file of conf/services with other addresses and paths. Each word must be there, so that a test uses what it thinks."""
    text = (SERVICES / file).read_text()
    for old, new in words.items():
        assert old in text, f"{file} does not say {old!r}"
        text = text.replace(old, new)
    return text


def group(name: str, file: str, ip: str, home: str, words: dict[str, str]) -> FromFile:
    text = substituted(file, words).partition("groups:\n")[2]
    assert f"  {name}:\n" in text
    return FromFile(name, ip, home, text="\n" + text)


class Volume:
    """Use as a context manager, within the lab's and before anything is started: the hosts are switched on anew."""

    def __init__(self, lab: Lab, kind: str = "ext4", octets: int = 320 << 20) -> None:
        self._lab, self._kind, self._octets = lab, kind, octets
        self._loops: list[str] = []

    def __enter__(self) -> Volume:
        image = self._lab.images / "volume.img"
        with open(image, "wb") as file:
            file.truncate(self._octets)
        sh(
            f"mkfs.{self._kind}",
            "-q",
            *(["-F", "-E", "lazy_itable_init=0"] if self._kind == "ext4" else []),
            str(image),
        )
        for name in ("a", "b"):
            self._loops.append(sh("losetup", "--find", "--show", str(image)).strip())
            (self._lab[name].state / "srv").mkdir()
            self._lab.devices[name] = {DEVICE: self._loops[-1]}
            self._lab[name].power_off()
            self._lab[name].power_on()
        return self

    def __exit__(self, *_: object) -> None:
        for name in ("a", "b"):
            self._lab[name].power_off()  # with it goes what is mounted
        for loop in self._loops:
            sh("losetup", "--detach", loop, check=False)

    @contextlib.contextmanager
    def mounted(self, host: Host) -> Iterator[Path]:
        """The disk in a host, as a path of this machine, while no daemon has it."""
        host.run("mount", "-t", self._kind, DEVICE, FOLDER)
        try:
            yield host.path(FOLDER)
        finally:
            host.run("umount", FOLDER)

    def crash(self, host: Host) -> int:
        """The host's power goes, and what its kernel had not written to the disk is lost. Returns when it was heard of last.

        By itself the end of a host unmounts in order. So the disk is cut off first, and before that the cables, so that
        nobody hears what the services say to that.
        """
        with host.switch:
            fault_ns = self._lab.pull(host.name, "lan")
            self._lab.pull(host.name, "cross")
            fd = os.open(host.path(FOLDER), os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.ioctl(fd, FS_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
            finally:
                os.close(fd)
            host.power_off()
            self._lab.reconnect()
        return fault_ns
