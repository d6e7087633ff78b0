"""The pair's service: answers each line on a TCP connection with "NODE TOKEN LINE".

python -I -S stream_echo.py ADDRESS PORT NODE
"""

import os
import socket
import sys
import threading


def serve(sock: socket.socket) -> None:
    head = f"{sys.argv[3]} {os.environ.get('HASNMP_TOKEN', '0')} ".encode()
    with sock, sock.makefile("rb") as lines:
        try:
            for line in lines:
                sock.sendall(head + line)
        except OSError:
            pass


listener = socket.create_server((sys.argv[1], int(sys.argv[2])), reuse_port=False)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
