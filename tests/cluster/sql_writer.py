"""A client that writes to PostgreSQL for as long as it runs, and says which of its transactions were acknowledged.

    python sql_writer.py HOST PORT USER PASSWORD FIRST       inserts the numbers FIRST, FIRST+1, ... into `ledger`

Each line of standard output: "ack NUMBER BEGUN_NS ENDED_NS", "error NUMBER BEGUN_NS ENDED_NS TEXT" (nobody knows what became of
that one: it is never used again), or "up 0 BEGUN_NS ENDED_NS" for a new connection; CLOCK_MONOTONIC. It does what docs/services.md
advises: short limits of its own, and at once again after each failure.
"""

from __future__ import annotations

import socket
import sys
import time

import psycopg

PAUSE_S = 0.005
AGAIN_S = 0.01
CONNECT_S = 0.1  # who has the address answers at once
# tcp_user_timeout: what was sent and is not acknowledged for so long ends the connection; keepalives: the same of a silent one
LIMITS = "connect_timeout=2 tcp_user_timeout=1000 keepalives_idle=1 keepalives_interval=1 keepalives_count=2"


def say(what: str, number: int, begun_ns: int, text: object = "") -> None:
    print(what, number, begun_ns, time.monotonic_ns(), " ".join(str(text).split()), flush=True)


def connected(host: str, port: str, user: str, password: str) -> psycopg.Connection[tuple[object, ...]]:
    """Raises OSError, psycopg.Error: not now."""
    # TCP asks again only after a second whether somebody is there, and libpq can't be told to; so it is asked beforehand.
    socket.create_connection((host, int(port)), CONNECT_S).close()
    return psycopg.connect(
        f"host={host} port={port} user={user} dbname=bank {LIMITS}", password=password, autocommit=True
    )


def main() -> None:
    *place, first = sys.argv[1:]
    number = int(first)
    connection = None
    while True:
        begun_ns = time.monotonic_ns()
        try:
            if connection is None:
                connection = connected(*place)
                say("up", 0, begun_ns)
        except (OSError, psycopg.Error):
            time.sleep(AGAIN_S)
            continue
        begun_ns = time.monotonic_ns()
        try:
            connection.execute("insert into ledger (number) values (%s)", (number,))
            say("ack", number, begun_ns)
        except psycopg.Error as error:
            say("error", number, begun_ns, error)
            connection.close()
            connection = None
        number += 1
        time.sleep(PAUSE_S)


if __name__ == "__main__":
    main()
