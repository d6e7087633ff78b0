"""An NFS client in user space, by libnfs: writes, reads and creates in a loop and says what became of each.

    python nfs_client.py URL            URL: nfs://ADDRESS/EXPORT?version=3 (libnfs's form)
    python nfs_client.py URL --hold     opens a file, and does nothing any more

Each line of standard output is one request: its name, its number, when it was begun and when it had ended (CLOCK_MONOTONIC,
ns), and "" or the error. The file `log` stays open from the beginning to the end. Writes are stable (O_SYNC): libnfs does
not compare the write verifiers that tell a client of a restart, so what it had only sent, and not committed, it would not
send again, as kernels' clients do.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import struct
import time

RECORD = struct.Struct("<Q56s")
PAUSE_S = 0.002
CREATE_EVERY = 10
LATER = "JUKEBOX"  # what a server in its grace period says to a create (RFC 1813 section 2.6)


class Nfs:
    def __init__(self, url: str) -> None:
        self._lib = lib = ctypes.CDLL("libnfs.so.13")
        for name, result, *arguments in (
            ("nfs_init_context", ctypes.c_void_p),
            ("nfs_parse_url_dir", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p),
            ("nfs_mount", ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p),
            ("nfs_set_autoreconnect", None, ctypes.c_void_p, ctypes.c_int),
            ("nfs_get_error", ctypes.c_char_p, ctypes.c_void_p),
            ("nfs_open2", ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_int, ctypes.c_void_p),
            ("nfs_close", ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p),
            ("nfs_pwrite", ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_char_p),
            ("nfs_pread", ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_char_p),
        ):  # fmt: skip
            function = getattr(lib, name)
            function.restype, function.argtypes = result, arguments
        self._nfs = lib.nfs_init_context()
        parsed = lib.nfs_parse_url_dir(self._nfs, url.encode())
        if not parsed:
            raise OSError(0, self._said(), url)
        server, path = ctypes.cast(parsed, ctypes.POINTER(ctypes.c_char_p))[0:2]
        lib.nfs_set_autoreconnect(self._nfs, -1)  # for as long as it takes
        if lib.nfs_mount(self._nfs, server, path):
            raise OSError(0, self._said(), url)
        lib.nfs_set_autoreconnect(self._nfs, -1)

    def _said(self) -> str:
        return (self._lib.nfs_get_error(self._nfs) or b"").decode(errors="replace")

    def open(self, path: str, flags: int) -> int:
        handle = ctypes.c_void_p()
        status = self._lib.nfs_open2(self._nfs, path.encode(), flags, 0o644, ctypes.byref(handle))
        if status:
            raise OSError(-status, self._said(), path)
        return handle.value or 0

    def close(self, handle: int) -> None:
        if status := self._lib.nfs_close(self._nfs, handle):
            raise OSError(-status, self._said())

    def pwrite(self, handle: int, offset: int, data: bytes) -> None:
        done = self._lib.nfs_pwrite(self._nfs, handle, offset, len(data), data)
        if done != len(data):
            raise OSError(-done if done < 0 else 0, self._said() if done < 0 else f"{done} octets written")

    def pread(self, handle: int, offset: int, octets: int) -> bytes:
        buffer = ctypes.create_string_buffer(octets)
        done = self._lib.nfs_pread(self._nfs, handle, offset, octets, buffer)
        if done < 0:
            raise OSError(-done, self._said())
        return buffer.raw[:done]


def record(number: int) -> bytes:
    return RECORD.pack(number, b"%056d" % (number * 7919))


def say(what: str, number: int, began_ns: int, error: str = "") -> None:
    print(what, number, began_ns, time.monotonic_ns(), error, sep="\t", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--hold", action="store_true")
    arguments = parser.parse_args()
    nfs = Nfs(arguments.url)
    log = nfs.open("held" if arguments.hold else "log", os.O_RDWR | os.O_CREAT | os.O_SYNC)
    say("mounted", 0, time.monotonic_ns())
    while arguments.hold:
        signal.pause()
    number, wanted = 0, list[int]()
    while True:
        number += 1
        began_ns = time.monotonic_ns()
        try:
            nfs.pwrite(log, number * RECORD.size, record(number))
            say("write", number, began_ns)
        except OSError as error:
            say("write", number, began_ns, str(error))
        began_ns = time.monotonic_ns()
        try:
            found = nfs.pread(log, number * RECORD.size, RECORD.size)
            say("read", number, began_ns, "" if found == record(number) else f"read {found!r}")
        except OSError as error:
            say("read", number, began_ns, str(error))
        if number % CREATE_EVERY == 0:
            wanted.append(number)
        if wanted and create(nfs, wanted[0]):
            wanted.pop(0)
        time.sleep(PAUSE_S)


def create(nfs: Nfs, number: int) -> bool:
    """False: the server is in its grace period, and wants to be asked again."""
    began_ns = time.monotonic_ns()
    try:
        handle = nfs.open(f"file-{number}", os.O_RDWR | os.O_CREAT | os.O_SYNC)
        nfs.pwrite(handle, 0, record(number))
        nfs.close(handle)
        say("create", number, began_ns)
    except OSError as error:
        later = LATER in str(error)
        say("later" if later else "create", number, began_ns, str(error))
        return not later
    return True


main()
