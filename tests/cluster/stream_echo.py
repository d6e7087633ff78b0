"""A service with connections: sends back what it gets, on each. Arguments: ADDRESS PORT. What is cut off shows at the client."""

import os
import selectors
import socket
import sys

try:  # as its clients: what is measured is hasnmp, not how busy the machine is
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
except PermissionError:
    pass
listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind((sys.argv[1], int(sys.argv[2])))
listener.listen()
selector = selectors.DefaultSelector()
selector.register(listener, selectors.EVENT_READ)
while True:
    for key, _ in selector.select():
        sock = key.fileobj
        if sock is listener:
            selector.register(listener.accept()[0], selectors.EVENT_READ)
            continue
        try:
            data = sock.recv(4096)
            sock.sendall(data)
        except OSError:
            data = b""
        if not data:
            selector.unregister(sock)
            sock.close()
