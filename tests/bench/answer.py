"""A service for the idle node of the benchmark: python -I -S answer.py PORT answers "PONG" on each TCP connection."""

import sys
from _socket import AF_INET, SO_REUSEADDR, SOCK_STREAM, SOL_SOCKET, socket

server = socket(AF_INET, SOCK_STREAM)
server.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
server.bind(("127.0.0.1", int(sys.argv[1])))
server.listen(8)
while True:
    fd, _ = server._accept()  # type: ignore[attr-defined]  # socket.socket, which has accept(), takes long to import
    connection = socket(AF_INET, SOCK_STREAM, 0, fd)
    try:
        connection.recv(64)
        connection.send(b"PONG\n")
    except OSError:
        pass  # the other end gave up
    connection.close()
