"""A relay in front of a real server that can fail as networks do: cut at any byte, or away for a while."""

import asyncio


class Cutter:
    """A relay to the server that cuts the connection after so many bytes from it, then waits to be armed again."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._left: int | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_shut = False
        self.cuts = 0

    @property
    def armed(self) -> bool:
        return self._left is not None

    @property
    def port(self) -> int:
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def cut_after(self, count: int | None) -> None:
        self._left = count

    async def shut(self) -> None:
        """As a server that is gone: what is open ends, and what comes is closed."""
        self._is_shut = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def unshut(self) -> None:
        self._is_shut = False

    async def __aenter__(self) -> "Cutter":
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self._is_shut:
            writer.transport.abort()
            return
        ends = [writer.transport]
        ways: list[asyncio.Task[None]] = []
        try:
            upstream, to_server = await asyncio.open_connection("127.0.0.1", self._target)
            ends.append(to_server.transport)
            ways = [asyncio.create_task(self._down(upstream, writer)), asyncio.create_task(self._up(reader, to_server))]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # Before anything that waits: this task may be cancelled a second time.
            for end in ends:
                end.abort()
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _up(self, reader: asyncio.StreamReader, to_server: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            to_server.write(data)
            await to_server.drain()

    async def _down(self, upstream: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await upstream.read(65536):
            if self._left is not None and self._left < len(data):
                writer.write(data[: self._left])
                self._left = None
                self.cuts += 1
                await writer.drain()
                return
            if self._left is not None:
                self._left -= len(data)
            writer.write(data)
            await writer.drain()
