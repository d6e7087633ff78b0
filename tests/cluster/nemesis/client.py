"""The clients: write and read the register through its virtual address all the time, and say what came of it.

    python client.py ADDRESS PORT CLIENTS PERIOD_MS TIMEOUT_MS

A line of JSON for each operation: [client, "w"|"r", value, begun_ns, ended_ns, outcome, seq, token, node, instance, stamp_ns],
outcome: ok | unknown (it was sent, and what became of it nobody knows) | none (it was never sent). Values are unique. Times are
CLOCK_BOOTTIME; stamp_ns is the server's, of its own clock. Ends with its standard input.
"""

import json
import random
import socket
import sys
import threading
import time

over = threading.Event()


def boot_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Client(threading.Thread):
    def __init__(self, number: int, address: tuple[str, int], period_s: float, timeout_s: float) -> None:
        super().__init__(daemon=True)
        self.name, self.address, self.period_s, self.timeout_s = f"c{number}", address, period_s, timeout_s
        self.random, self.count = random.Random(number), 0
        self.sock: socket.socket | None = None

    def run(self) -> None:
        while not over.is_set():
            self.operate("w" if self.random.random() < 0.6 else "r")
            time.sleep(self.random.uniform(0.5, 1.5) * self.period_s)

    def operate(self, kind: str) -> None:
        self.count += 1
        value = f"{self.name}.{self.count}" if kind == "w" else ""
        begun, outcome, words = boot_ns(), "none", ["0", "0", "", "", "0", ""]
        try:
            if self.sock is None:
                self.sock = socket.create_connection(self.address, self.timeout_s)
                self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            outcome = "unknown"
            self.sock.sendall(f"{kind} {value}\n".encode())
            reply = b""
            while not reply.endswith(b"\n"):
                data = self.sock.recv(4096)
                if not data:
                    raise ConnectionError
                reply += data
            ok, *words = reply.decode().split()
            assert ok == "ok"
            outcome = "ok"
        except OSError:
            if self.sock is not None:
                self.sock.close()
            self.sock = None
        ended = boot_ns()
        if kind == "r" and outcome == "ok":
            value = words[5]
        line = json.dumps([self.name, kind, value, begun, ended, outcome, int(words[0]), int(words[1]), words[2],
                           words[3], int(words[4])])  # fmt: skip
        sys.stdout.write(line + "\n")  # one call: lines of several threads stay whole
        sys.stdout.flush()


def main() -> None:
    address, port, count, period_ms, timeout_ms = sys.argv[1:]
    clients = [
        Client(number, (address, int(port)), float(period_ms) / 1000, float(timeout_ms) / 1000)
        for number in range(1, int(count) + 1)
    ]
    for client in clients:
        client.start()
    sys.stdin.read()
    over.set()
    for client in clients:
        client.join()  # every operation that was begun is told


main()
