"""A relay to an object store that loses responses to requests that the store has done."""

import asyncio
import random
import re
from contextlib import suppress

_CHUNK_BYTES = 64 * 2**10
_REQUEST = re.compile(rb"(GET|HEAD|PUT|POST|DELETE) (\S+) HTTP/1\.1\r\n")


class Dropping:
    """Forwards requests of HTTP/1.1 to HOST:PORT, and their responses.

    While `share` is above 0, that share of the responses to puts of log entries is dropped, each with its connection.
    Needs clients that send one request at a time on a connection, as urllib3 does.
    """

    def __init__(self, target: str, chance: random.Random) -> None:
        self._host, _, port = target.partition(":")
        self._to = int(port)
        self._chance = chance
        self.share = 0.0
        self.dropped = 0
        self.address = ""
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listens on a free port of loopback."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        """Closes all connections."""
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accept(self, near: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._serve(near, answers))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _serve(self, near: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        committing = False
        ends = [answers]

        async def ask() -> None:
            nonlocal committing
            while data := await near.read(_CHUNK_BYTES):
                begun = _REQUEST.match(data)
                if begun is not None:
                    committing = begun[1] == b"PUT" and b"/log/" in begun[2]
                requests.write(data)
                await requests.drain()

        async def answer() -> None:
            while data := await far.read(_CHUNK_BYTES):
                if committing and self._chance.random() < self.share:
                    self.dropped += 1
                    return
                answers.write(data)
                await answers.drain()

        ways: list[asyncio.Task[None]] = []
        try:
            far, requests = await asyncio.open_connection(self._host, self._to)
            ends.append(requests)
            ways = [asyncio.create_task(ask()), asyncio.create_task(answer())]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        except OSError:
            pass  # the store does not listen now
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for end in ends:
                # Not close(), which would wait for a peer that does not read.
                end.transport.abort()
                with suppress(OSError):
                    await end.wait_closed()
