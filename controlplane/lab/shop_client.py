"""What the lab runs inside a pod's namespace to prove a flow: real sockets, one JSON line as the verdict.

Belongs here: a program of its own, standard library only, started with `python -I -S`:
    shop_client.py http ADDRESS PORT       one request; {"ok", "answer" or "error", "ms"}
    shop_client.py stream ADDRESS PORT     numbered TCP blocks until standard input closes
    shop_client.py datagrams ADDRESS PORT  numbered UDP datagrams, echoed, until standard input closes
The last two print {"flowing": true} once data arrives, and their count at the end.
"""

import json
import select
import socket
import sys
import time

HTTP_S_MAX = 2.0
DATAGRAM_PAUSE_S = 0.005
LAST_REPLY_S = 1.0
STREAM_SILENCE_S_MAX = 20.0


def say(**fields: object) -> None:
    """One line of JSON."""
    print(json.dumps(fields), flush=True)


def http(address: str, port: int) -> None:
    """One request, with a verdict."""
    started = time.monotonic()
    try:
        with socket.create_connection((address, port), HTTP_S_MAX) as connection:
            connection.settimeout(HTTP_S_MAX)
            connection.sendall(b"GET / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n")
            answer = b""
            while part := connection.recv(65536):
                answer += part
        who = json.loads(answer.partition(b"\r\n\r\n")[2])
        say(ok=True, answer=who, ms=round((time.monotonic() - started) * 1000, 1))
    except (OSError, ValueError) as error:
        say(ok=False, error=str(error), ms=round((time.monotonic() - started) * 1000, 1))


def stream(address: str, port: int) -> None:
    """Read numbers until standard input closes; count what is out of order."""
    received, expected, wrong, pause_s, broken = 0, 0, 0, 0.0, ""
    with socket.create_connection((address, port), HTTP_S_MAX) as connection:
        connection.sendall(b"GET /stream HTTP/1.1\r\nHost: shop\r\n\r\n")
        reader = connection.makefile("rb")
        while reader.readline().strip():
            pass
        rest, last, spoke = b"", time.monotonic(), False
        connection.settimeout(STREAM_SILENCE_S_MAX)
        while not select.select([sys.stdin], [], [], 0)[0]:
            try:
                data = reader.read1(65536)
            except OSError as error:
                broken = str(error)
                break
            if not data:
                broken = "the connection was closed"
                break
            now = time.monotonic()
            pause_s, last = max(pause_s, now - last), now
            received += len(data)
            rest += data
            whole = len(rest) // 8 * 8
            for start in range(0, whole, 8):
                wrong += int.from_bytes(rest[start : start + 8], "big") != expected
                expected += 1
            rest = rest[whole:]
            if not spoke:
                spoke = True
                say(flowing=True)
    say(bytes=received, bytes_lost=wrong * 8, longest_pause_ms=round(pause_s * 1000, 1), broken=broken)


def datagrams(address: str, port: int) -> None:
    """Send numbers at a steady pace until standard input closes; count what did not come back."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    pending: set[int] = set()
    sent, refused, repeated, spoke = 0, 0, 0, False
    with socket.socket(family, socket.SOCK_DGRAM) as connection:
        connection.connect((address, port))
        connection.setblocking(False)
        following = time.monotonic()
        end = None
        while end is None or (pending and time.monotonic() < end):
            now = time.monotonic()
            if end is None and now >= following:
                try:
                    connection.send(sent.to_bytes(8, "big"))
                except OSError:
                    refused += 1
                pending.add(sent)
                sent, following = sent + 1, following + DATAGRAM_PAUSE_S
            wait_s = max(0.0, following - now) if end is None else 0.05
            ready = select.select([connection] if end else [connection, sys.stdin], [], [], wait_s)[0]
            if sys.stdin in ready:
                end = time.monotonic() + LAST_REPLY_S
            if connection in ready:
                try:
                    number = int.from_bytes(connection.recv(64), "big")
                except OSError:
                    refused += 1
                    continue
                repeated += number not in pending
                pending.discard(number)
                if not spoke:
                    spoke = True
                    say(flowing=True)
    say(sent=sent, lost=len(pending), repeated=repeated, refused=refused)


MODES = {"http": http, "stream": stream, "datagrams": datagrams}

if __name__ == "__main__":
    MODES[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
