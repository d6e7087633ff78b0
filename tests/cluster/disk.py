"""A lease disk that can fail: one image seen through one FUSE file a host, each of which can be gone, frozen or slow.

    python disk.py IMAGE MOUNTPOINT...       each mount point is an empty file, and becomes that host's view of the image

Commands on standard input, one a line: "NUMBER ok|gone|frozen|readonly|slow MS|corrupt OFFSET|image PATH", NUMBER counting
mount points from 0.
    gone        every open, read and write fails with EIO
    frozen      reads, writes and syncs hang until the next command; a process in one can't be killed, as with a real disk
    readonly    a write, and an open for writing, fails with EROFS; reads work
    slow MS     each takes so much longer, and a write reaches the image only at the end of that time
    corrupt OFFSET   from there on other octets are read than were written, however often they are written
    image PATH  what is read and written is another image, as if the disk had been exchanged under the host
End of file on standard input ends it; whoever started it unmounts.

Speaks the kernel's protocol itself (linux/fuse.h, 7.31): for a single file that is less than any library's set-up.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import struct
import sys
import time

HEADER = struct.Struct("<IIQQIIII")  # length, opcode, unique, node id, uid, gid, pid, padding
GETATTR, SETATTR, OPEN, READ, WRITE, STATFS, RELEASE, FSYNC, FLUSH, INIT, ACCESS = (
    3,
    4,
    14,
    15,
    16,
    17,
    18,
    20,
    25,
    26,
    34,
)
SILENT = {2, 36, 42}  # FORGET, INTERRUPT, BATCH_FORGET want no answer
DISK = {READ, WRITE, FSYNC}
_libc = ctypes.CDLL(None, use_errno=True)


class View:
    """One host's view of the image."""

    def __init__(self, image: int, target: str) -> None:
        self.own = self.image = image
        self.mode, self.slow_s, self.sound = "ok", 0.0, 1 << 62
        self.held: list[tuple[float, bytes]] = []  # when to serve it, and the request
        self.fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self.fd},rootmode=100600,user_id=0,group_id=0,allow_other,default_permissions"
        if _libc.mount(b"hasnmp-lab", target.encode(), b"fuse", 0, options.encode()):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), target)

    def command(self, mode: str, argument: str) -> None:
        if self.image != self.own:
            os.close(self.image)
        self.image = os.open(argument, os.O_RDWR | os.O_CLOEXEC) if mode == "image" else self.own
        self.mode, self.slow_s = mode, int(argument) / 1000 if mode == "slow" else 0.0
        self.sound = int(argument) if mode == "corrupt" else 1 << 62  # octets before the first that is damaged
        if mode != "frozen":
            self.held = [(min(at, time.monotonic() + self.slow_s), request) for at, request in self.held]

    def readable(self) -> None:
        request = os.read(self.fd, 1 << 18)
        opcode = HEADER.unpack_from(request)[1]
        if opcode in SILENT:
            return
        if opcode in DISK and self.mode == "frozen":
            self.held.append((float("inf"), request))
        elif opcode in DISK and self.slow_s:
            self.held.append((time.monotonic() + self.slow_s, request))
        else:
            self.serve(request)

    def due(self) -> float:
        """Serve what was held for long enough; when to look again."""
        now = time.monotonic()
        ripe = [request for at, request in self.held if at <= now]
        self.held = [(at, request) for at, request in self.held if at > now]
        for request in ripe:
            self.serve(request)
        return min((at for at, _ in self.held), default=float("inf"))

    def serve(self, request: bytes) -> None:
        _, opcode, unique, *_ = HEADER.unpack_from(request)
        body, failure = b"", 0
        try:
            body = self.answer(opcode, request[HEADER.size :])
        except OSError as error:
            failure = -(error.errno or errno.EIO)
        os.write(self.fd, struct.pack("<IiQ", 16 + len(body), failure, unique) + body)

    def answer(self, opcode: int, request: bytes) -> bytes:
        """The body of the answer. Raises OSError: what the kernel is to be told."""
        if self.mode == "gone" and opcode in {*DISK, OPEN}:
            raise OSError(errno.EIO, "gone")
        writes = opcode == WRITE or (opcode == OPEN and struct.unpack_from("<I", request)[0] & os.O_ACCMODE)
        if self.mode == "readonly" and writes:
            raise OSError(errno.EROFS, "read-only")
        if opcode == INIT:
            return struct.pack("<IIIIHHIIHHI28x", 7, 31, 0, 0, 16, 12, 1 << 17, 1, 0, 0, 0)
        if opcode in (GETATTR, SETATTR):
            size = os.fstat(self.image).st_size
            return struct.pack("<QII", 0, 0, 0) + struct.pack("<6Q10I", 1, size, size // 512, 0, 0, 0,
                                                              0, 0, 0, 0o100600, 1, 0, 0, 0, 4096, 0)  # fmt: skip
        if opcode == OPEN:
            # FOPEN_DIRECT_IO: nothing of it stays in a page cache; PARALLEL_DIRECT_WRITES: as a block device, the kernel
            # does not hold one write back until another has returned.
            return struct.pack("<QII", 0, 1 | 1 << 6, 0)
        if opcode == READ:
            _, offset, size = struct.unpack_from("<QQI", request)
            octets = os.pread(self.image, size, offset)
            sound = max(0, self.sound - offset)
            return octets[:sound] + bytes(octet ^ 0x5A for octet in octets[sound:])
        if opcode == WRITE:
            _, offset, size = struct.unpack_from("<QQI", request)
            return struct.pack("<II", os.pwrite(self.image, request[40 : 40 + size], offset), 0)
        if opcode == STATFS:
            return struct.pack("<5Q4I24x", 1 << 20, 1 << 20, 1 << 20, 1, 1, 4096, 255, 4096, 0)
        if opcode in (RELEASE, FSYNC, FLUSH, ACCESS):
            return b""
        raise OSError(errno.ENOSYS, "not in this file system")


def main() -> None:
    with contextlib.suppress(PermissionError):  # a disk is not slow because the machine's processors are busy
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    image = os.open(sys.argv[1], os.O_RDWR | os.O_CLOEXEC)
    views = [View(image, target) for target in sys.argv[2:]]
    by_fd = {view.fd: view for view in views}
    print("ready", flush=True)
    rest = b""
    while True:
        again = min(view.due() for view in views)
        wait = None if again == float("inf") else max(0.0, again - time.monotonic())
        readable, _, _ = select.select([0, *by_fd], [], [], wait)
        for fd in readable:
            if fd:
                try:
                    by_fd[fd].readable()
                except OSError as error:
                    if error.errno != errno.ENODEV:
                        raise
                    del by_fd[fd]  # unmounted
                continue
            data = os.read(0, 4096)
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                number, mode, *argument = line.decode().split()
                views[int(number)].command(mode, *argument or [""])
                print("done", flush=True)


main()
