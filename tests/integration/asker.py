"""A client that asks several addresses in one run, or holds one connection: a program of its own, standard library only.

    asker.py ask SECONDS PROTOCOL,ADDRESS,PORT,TIMES ...   one line of JSON per ask: what came of each time
    asker.py hold SECONDS PROTOCOL ADDRESS PORT   opens, by UDP asks; for a line of standard input asks on that socket

SECONDS is how long it waits for anything.

Belongs here: sockets. Does not belong here: what should come of them. Asked are the lab's shop servers: TCP answers
HTTP with a card, UDP echoes.
"""

import json
import socket
import sys

REQUEST = b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n"


def opened(silence_s: float, protocol: str, address: str, port: int) -> socket.socket:
    """A connected socket. Raises OSError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM)
    made.settimeout(silence_s)
    made.connect((address, port))
    return made


def answer(protocol: str, connection: socket.socket) -> dict[str, str]:
    """Ask once. Raises OSError."""
    if protocol == "udp":
        connection.send(b"x")
        return {"echo": connection.recv(16).decode()}
    connection.sendall(REQUEST)
    received = b""
    while part := connection.recv(65536):
        received += part
    head, _, body = received.partition(b"\r\n\r\n")
    try:
        card: dict[str, str] = json.loads(body)
    except ValueError:
        return {"status": head.split()[1].decode()}
    return {**card, "status": head.split()[1].decode()}


def once(silence_s: float, protocol: str, address: str, port: int) -> dict[str, str]:
    """An answer, or {"error": ...}."""
    try:
        with opened(silence_s, protocol, address, port) as connection:
            return answer(protocol, connection)
    except OSError as error:
        return {"error": type(error).__name__}


def hold(silence_s: float, protocol: str, address: str, port: int) -> None:
    """A line of JSON when it is open, one at the end."""
    with opened(silence_s, protocol, address, port) as connection:
        print(json.dumps(answer(protocol, connection) if protocol == "udp" else {}), flush=True)
        sys.stdin.readline()
        try:
            print(json.dumps(answer(protocol, connection)), flush=True)
        except OSError as error:
            print(json.dumps({"error": type(error).__name__}), flush=True)


if __name__ == "__main__":
    mode, seconds, *words = sys.argv[1:]
    if mode == "hold":
        hold(float(seconds), words[0], words[1], int(words[2]))
    else:
        for each in words:
            protocol, address, port, times = each.split(",")
            found = [once(float(seconds), protocol, address, int(port)) for _ in range(int(times))]
            print(json.dumps(found), flush=True)
