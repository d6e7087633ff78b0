"""The service of the demo: an HTTP server of one page that says which node serves it, under which token.

Run as a program, with ADDRESS PORT NAME NODE. Imports next to nothing, so that its start is not what a takeover waits for.
"""

import os
import socket
import sys


def main() -> None:
    address, port, name, node = sys.argv[1:5]
    page = f"{name} served by {node} under token {os.environ.get('HASNMP_TOKEN', '?')}\n".encode()
    answer = b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%b" % (len(page), page)
    with socket.socket() as listener:
        # The connections of the node that served before may still linger; two that listen at once are refused anyway.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, int(port)))
        listener.listen(64)
        while True:
            client, _ = listener.accept()
            with client:
                try:
                    client.settimeout(1)
                    client.recv(4096)
                    client.sendall(answer)
                except OSError:
                    continue  # a client that went away is its own loss


if __name__ == "__main__":
    main()
