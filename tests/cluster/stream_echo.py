"""A service with connections: sends back what it gets, on each. Arguments: ADDRESS PORT. What is cut off shows at the client."""

import selectors
import socket
import sys

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
