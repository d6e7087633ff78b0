"""Disks that a test may break: file systems on loop devices, seen through a file that can freeze (tests/cluster/disk.py)."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

CLONE_NEWNS = 0x20000
DISK = Path(__file__).parents[1] / "cluster" / "disk.py"


def sh(*argv: str) -> str:
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120
    )
    assert done.returncode == 0, f"{' '.join(argv)}: exit {done.returncode}: {done.stdout}"
    return done.stdout.strip()


class Disk:
    """A block device with a file system on it. Close it when nothing has it mounted any more."""

    def __init__(self, folder: Path, kind: str = "ext4", can_freeze: bool = False) -> None:
        self.kind, self.folder = kind, folder
        self.directory = folder / "files"
        self.directory.mkdir()
        image = folder / "image"
        with open(image, "wb") as file:
            file.truncate((320 if kind == "xfs" else 16) << 20)
        sh(f"mkfs.{kind}", "-q", *(["-F"] if kind == "ext4" else []), str(image))
        self._server: subprocess.Popen[str] | None = None
        self._view = folder / "view"
        if can_freeze:
            self._view.touch()
            self._server = subprocess.Popen(
                [sys.executable, "-I", str(DISK), str(image), str(self._view)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
            )  # fmt: skip
            assert self._server.stdout and self._server.stdout.readline() == "ready\n"
            image = self._view
        self.device = sh("losetup", "-f", "--show", str(image))

    def options(self, more: str = "") -> dict[str, str]:
        return {"device": self.device, "directory": str(self.directory), "fstype": self.kind, "options": more}

    def mode(self, mode: str) -> None:
        """ok | gone | frozen"""
        assert self._server and self._server.stdin and self._server.stdout
        self._server.stdin.write(f"0 {mode}\n")
        self._server.stdin.flush()
        assert self._server.stdout.readline() == "done\n"

    def content(self) -> set[str]:
        """The names of the files on it, as the next node that mounts it finds them."""
        with contextlib.ExitStack() as stack:
            sh(
                "unshare",
                "-m",
                "sh",
                "-c",
                f"mount {self.device} {self.directory} && ls {self.directory} > {self.folder}/ls",
            )
            stack.callback((self.folder / "ls").unlink)
            return set((self.folder / "ls").read_text().split()) - {"lost+found"}

    def close(self) -> None:
        if self._server:
            self.mode("ok")
        sh("losetup", "-d", self.device)
        if self._server and self._server.stdin:
            sh("umount", "-l", str(self._view))
            self._server.stdin.close()
            self._server.wait(30)


def mounts_of(pid: int) -> str:
    """/proc/PID/mountinfo: what is mounted as that process sees it."""
    return Path(f"/proc/{pid}/mountinfo").read_text()


def with_own_mounts(test: Callable[[], None]) -> None:
    """Run it in a forked process with a mount namespace of its own; its failure is ours."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            assert ctypes.CDLL(None).unshare(CLONE_NEWNS) == 0
            sh("mount", "--make-rprivate", "/")
            test()
            status = 0
        except BaseException:
            os.write(writer, traceback.format_exc().encode()[-60000:])
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as said:
        text = said.read()
    assert os.waitpid(pid, 0)[1] == 0, text
