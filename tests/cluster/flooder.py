"""Sends datagrams as fast as it can, one of each file in turn, until its standard input ends; then writes how many left.

    python flooder.py ADDRESS PORT FILE...

It runs behind every other program: it is another machine's in the scenario, and must not take the tested ones' processors.
"""

import os
import select
import socket
import sys
from pathlib import Path

BURST = 16  # between two looks at the standard input


def main() -> None:
    os.nice(19)
    messages = [Path(name).read_bytes() for name in sys.argv[3:]]
    sent = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((sys.argv[1], int(sys.argv[2])))
        while not select.select([0], [], [], 0)[0]:
            for _ in range(BURST):
                try:
                    sock.send(messages[sent % len(messages)])
                except OSError:
                    continue  # the network is full
                sent += 1
    print(sent, flush=True)


if __name__ == "__main__":
    main()
