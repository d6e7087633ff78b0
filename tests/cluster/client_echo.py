"""A client with hasnmp.client: a line every few milliseconds to wherever the service runs, until its standard input ends.

    python client_echo.py CLIENT-FILE SERVICE

Written to standard output: "got NODE TOKEN NS" for an answer that counts, by when it was confirmed; "not NODE TOKEN NS" for one
that came and does not; "lost NS TEXT" for a connection. NS: CLOCK_BOOTTIME.
"""

import os
import select
import sys

from hasnmp.client import Client, Link, Moved, now_ns

PERIOD_S = 0.005


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def use(link: Link) -> None:
    link.sock.settimeout(10)  # the library ends the connection long before this
    try:
        while not select.select([0], [], [], PERIOD_S)[0]:
            link.sock.sendall(b"hello\n")
            answer = b""
            while not answer.endswith(b"\n"):
                came = link.sock.recv(100)
                if not came:
                    raise ConnectionError("closed")
                answer += came
            node, token, _ = answer.decode().split()
            try:
                link.confirm()
            except Moved:
                say("not", node, token, now_ns())
                raise
            say("got", node, token, now_ns())
    except (OSError, Moved) as error:
        say("lost", now_ns(), link.moved or error)
        raise


if __name__ == "__main__":
    Client.load(sys.argv[1]).run(sys.argv[2], use, 60)
