"""A client with one open connection: sends a line every 10 ms, and waits for it to come back.

    python talker.py ADDRESS PORT

Written to standard output, a line for each: "connected", "got NUMBER NS" (CLOCK_MONOTONIC), at last "failed TEXT" if the
connection did not live as long as this program. Ends with its standard input. It runs before ordinary programs, as the
probe does: what is measured is the server.
"""

import os
import select
import socket
import sys
import time
from contextlib import suppress

PERIOD_S = 0.01
PATIENCE_S = 5.0  # for the server's start, and for an answer


def connect(address: tuple[str, int]) -> socket.socket:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return socket.create_connection(address, PATIENCE_S)
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def main() -> None:
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    try:
        sock = connect((sys.argv[1], int(sys.argv[2])))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(2 * PATIENCE_S)
        os.write(1, b"connected\n")
        number = 0
        while not select.select([0], [], [], PERIOD_S)[0]:
            word, back = b"%9d\n" % number, b""
            sock.sendall(word)
            while len(back) < len(word):
                data = sock.recv(len(word) - len(back))
                if not data:
                    raise ConnectionError("closed by the server")
                back += data
            os.write(1, b"got %d %d\n" % (number, time.monotonic_ns()))
            number += 1
    except OSError as error:
        os.write(1, f"failed {error}\n".encode())


main()
