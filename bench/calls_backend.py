"""The backend of `calls.py`: the five requests of gogate's contract, answered as fast as Python can.

It decides nothing, so that the gateway is what is measured: texts are filled in, nothing is parsed but lengths and ids.
Client i of the crowd is user `1i` and writes in chat `1j`, j = i/2: templates can't add, and no id may be 0.
"""

import asyncio
import sys
from typing import Any

import uvloop

CREATED = b'"type":"text","text":"hello","reply_to":null,"attachments":[],"reactions":[],"read_count":0,"mentions":null'
TIMES = b'"created_at":"2026-01-01T00:00:00Z","edited_at":null,"is_edited":false'


class Answers(asyncio.Protocol):
    """One connection. Requests come one after the other: a client waits for the answer."""

    sent = 0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end]
            size = end + 4 + length_of(head)
            if len(self._buffer) < size:
                return
            body, self._buffer = self._buffer[end + 4 : size], self._buffer[size:]
            answer = self._answer(head.split(b" ", 2)[1], body)
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(answer), answer))

    def _answer(self, path: bytes, body: bytes) -> bytes:
        if path.endswith(b"/validate"):
            user = body.rpartition(b"user-")[2].rstrip(b'"}')
            return b'{"valid":true,"user":{"user_id":%b,"name":"User %b","phone":"+15550100"}}' % (user, user)
        if path.endswith(b"/members"):
            pair = int(path.split(b"/")[-2][1:])
            members = (pair * 2, pair * 2 + 1)
            return b'{"chat_id":1%d,"members":[{"user_id":1%d},{"user_id":1%d}]}' % (pair, *members)
        if path.endswith(b"/messages"):
            Answers.sent += 1
            author = b'"user":{"id":1,"name":"User 1","phone":"+15550100"}'
            return b'{"id":%d,%b,%b,%b}' % (Answers.sent, author, CREATED, TIMES)
        return b"{}"


def length_of(head: bytes) -> int:
    at = head.lower().find(b"content-length:")
    return int(head[at + 15 :].partition(b"\r\n")[0]) if at >= 0 else 0


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Answers, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
