"""The service that the laboratory's clusters run: answers each datagram with "NODE TOKEN DATAGRAM".

    python -I -S echo.py ADDRESS PORT [worker]

worker: a forked child answers, as many servers have it. A child does not die with the guardian that started its parent.

Bound to the virtual address alone, so that an answer leaves from it. It imports next to nothing: its start is part of
every failover that is measured.
"""

import os
import sys
from _socket import AF_INET, AF_INET6, SO_REUSEADDR, SOCK_DGRAM, SOL_SOCKET, socket

if sys.argv[3:] == ["worker"] and os.fork():
    os.wait()
    sys.exit(1)
try:  # as its clients: what is measured is hasnmp, not how busy the machine is
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
except PermissionError:
    pass
sock = socket(AF_INET6 if ":" in sys.argv[1] else AF_INET, SOCK_DGRAM)
sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
sock.setsockopt(0, 15, 1)  # IP_FREEBIND: a test of the probe itself binds before the address is there
sock.bind((sys.argv[1], int(sys.argv[2])))
head = f"{os.uname().nodename} {os.environ.get('HASNMP_TOKEN', '0')} ".encode()
while True:
    try:
        data, peer = sock.recvfrom(64)
        sock.sendto(head + data, peer)
    except OSError:
        pass  # the packet filter refused the answer: the address has been taken from us
