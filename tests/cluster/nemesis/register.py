"""The application: a register on the shared disk, with a log of every write: who wrote what under which token.

    python -I -S register.py ADDRESS PORT FILE

One line a request, one a reply:
    w VALUE    ->  ok SEQ TOKEN NODE INSTANCE NS         the record is on the disk (O_DIRECT, O_DSYNC) when this is sent
    r          ->  ok SEQ TOKEN NODE INSTANCE NS VALUE   from memory, as a database answers: who is no owner any more
                                                         answers what is stale
NS is CLOCK_BOOTTIME just before the reply is sent. INSTANCE names this very process.

Block n-1 of the file (512 octets) is record n: "REG SEQ TOKEN NODE INSTANCE NS CAME VALUE CRC" and spaces. NS is just before it
is written; CAME is when the newest segment of its request had come to this machine, as the kernel noted it: a request may wait
in the kernel for as long as the one before it is being written. The program trusts that it is alone, as any application does:
it looks at the disk once, when it starts. That is what is being tested.
"""

import mmap
import os
import select
import socket
import struct
import sys
import time
import zlib

BLOCK = 512
SO_TIMESTAMPNS = 35  # of the kernel's for 64 bits; Python has no name for it


def boot_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def record(seq: int, token: int, node: str, instance: str, ns: int, came_ns: int, value: str) -> bytes:
    text = f"REG {seq} {token} {node} {instance} {ns} {came_ns} {value}"
    return f"{text} {zlib.crc32(text.encode()):08x}".encode().ljust(BLOCK)


def parse(block: bytes) -> list[str] | None:
    """[SEQ, TOKEN, NODE, INSTANCE, NS, CAME, VALUE], None: no whole record."""
    text, _, crc = block.decode(errors="replace").rstrip(" \0").rpartition(" ")
    words = text.split(" ")
    good = len(words) == 8 and words[0] == "REG" and f"{zlib.crc32(text.encode()):08x}" == crc
    return words[1:] if good else None


def came_ns(ancillary: list[tuple[int, int, bytes]]) -> int:
    """When what was just received had come, by CLOCK_BOOTTIME; never earlier than it was. Now, if the kernel did not note it."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, SO_TIMESTAMPNS):
            seconds, ns = struct.unpack("qq", data)
            # A pair is late by what passed between its two readings, never early: the tightest of a few.
            shift_ns = min(-time.time_ns() + boot_ns() for _ in range(5))
            return seconds * 1_000_000_000 + ns + shift_ns
    return boot_ns()


class Register:
    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_DSYNC | os.O_CLOEXEC)
        self.buffer = mmap.mmap(-1, 4096)
        self.token, self.node = int(os.environ.get("HASNMP_TOKEN", "0")), os.uname().nodename
        self.instance = f"{self.node}-{os.getpid()}-{boot_ns()}"
        low, high = 0, os.fstat(self.fd).st_size // BLOCK
        while low < high:  # the log has no holes: its end is where whole records end
            middle = (low + high) // 2
            if self.read(middle + 1):
                low = middle + 1
            else:
                high = middle
        self.seq = low
        last = self.read(low) if low else None
        self.value = last[6] if last else "-"

    def read(self, seq: int) -> list[str] | None:
        with memoryview(self.buffer)[:BLOCK] as view:
            os.preadv(self.fd, [view], (seq - 1) * BLOCK)
            return parse(bytes(view))

    def write(self, value: str, came: int) -> None:
        self.buffer[:BLOCK] = record(self.seq + 1, self.token, self.node, self.instance, boot_ns(), came, value)
        with memoryview(self.buffer)[:BLOCK] as view:
            assert os.pwritev(self.fd, [view], self.seq * BLOCK) == BLOCK
        self.seq, self.value = self.seq + 1, value

    def answer(self, line: str, came: int) -> str:
        verb, _, value = line.partition(" ")
        if verb == "w":
            self.write(value, came)
        reply = f"ok {self.seq} {self.token} {self.node} {self.instance} {boot_ns()}"
        return reply + "\n" if verb == "w" else f"{reply} {self.value}\n"


def main() -> None:
    register = Register(sys.argv[3])
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.setsockopt(0, 15, 1)  # IP_FREEBIND
    server.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)  # each connection has it from this one
    server.bind((sys.argv[1], int(sys.argv[2])))
    server.listen(64)
    poll = select.poll()
    poll.register(server, select.POLLIN)
    clients: dict[int, socket.socket] = {}
    while True:
        for fd, _ in poll.poll():
            if fd == server.fileno():
                client, _ = server.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                client.setblocking(False)
                clients[client.fileno()] = client
                poll.register(client, select.POLLIN)
                continue
            try:
                data, ancillary, _, _ = clients[fd].recvmsg(4096, 128)
                # A client waits for its reply: that is one whole line at a time.
                for line in data.decode().splitlines():
                    clients[fd].send(register.answer(line, came_ns(ancillary)).encode())
            except OSError:
                data = b""
            if not data:
                poll.unregister(fd)
                clients.pop(fd).close()


if __name__ == "__main__":
    main()
