"""What runs in every pod of the lab: a small shop that says who answered.

Belongs here: a program of its own, standard library only, started with `python -I -S`. Port 8080 over IPv4 and IPv6:
TCP answers HTTP (`/` says who this is and who asks, `/stream` sends numbered blocks until the client leaves), UDP
echoes.
"""

import asyncio
import json
import os
import socket
import sys

PORT = 8080
BLOCK_NUMBERS = 128
"""Numbers of 8 bytes in one block of the stream."""
BLOCK_PAUSE_S = 0.002
REQUEST_S_MAX = 10.0


def identity_card(client: str) -> bytes:
    """Who this is, and the address of who asks, as JSON."""
    names = ("NAME", "NAMESPACE", "CLUSTER", "NODE")
    card = {name.lower(): os.environ.get(f"SHOP_{name}", "") for name in names}
    return json.dumps({**card, "client": client.removeprefix("::ffff:")}).encode()


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One HTTP request, then the connection ends."""
    try:
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), REQUEST_S_MAX)
        if head.split(b" ", 2)[1] == b"/stream":
            await send_numbers(writer)
        else:
            card = identity_card(writer.get_extra_info("peername")[0])
            status = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(card)}\r\n"
            writer.write(status.encode() + b"Connection: close\r\n\r\n" + card)
            await writer.drain()
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError, IndexError):
        pass  # a client that left or speaks something else; there is nobody to tell
    finally:
        writer.close()


async def send_numbers(writer: asyncio.StreamWriter) -> None:
    """Numbers of 8 bytes from 0 on, so that a hole, a repeat or a swap shows."""
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    number = 0
    while True:
        writer.write(b"".join(n.to_bytes(8, "big") for n in range(number, number + BLOCK_NUMBERS)))
        number += BLOCK_NUMBERS
        await writer.drain()
        await asyncio.sleep(BLOCK_PAUSE_S)


class Echo(asyncio.DatagramProtocol):
    """Sends every datagram back."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way back."""
        self.transport = transport

    def datagram_received(self, data: bytes, addr: object) -> None:
        """Back to where it came from."""
        self.transport.sendto(data, addr)  # type: ignore[attr-defined]


async def serve(port: int) -> None:
    """Until killed."""
    tcp = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128)
    udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    udp.bind(("::", port))
    await asyncio.get_running_loop().create_datagram_endpoint(Echo, sock=udp)
    server = await asyncio.start_server(answer, sock=tcp)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]) if len(sys.argv) > 1 else PORT))
