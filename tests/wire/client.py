"""A WebSocket client that may do everything wrong: bytes out, frames in, no protocol of its own.

Rule: it never helps: no masking, no UTF-8 check, no close handshake unless the test sends one.
"""

import base64
import os
import socket
import struct
from dataclasses import dataclass

TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG = 1, 2, 0, 8, 9, 10
READ_S_MAX = 10  # longer than any answer may take, shorter than a test's time-out


@dataclass
class Frame:
    opcode: int
    payload: bytes
    fin: bool = True
    rsv1: bool = False

    @property
    def close_code(self) -> int:
        return struct.unpack("!H", self.payload[:2])[0] if self.opcode == CLOSE and len(self.payload) >= 2 else 0


def head(length: int, opcode: int, *, fin: bool = True, rsv: int = 0, masked: bool = True) -> bytes:
    """A frame header that announces `length`, without mask key and payload."""
    first = (0x80 if fin else 0) | rsv << 4 | opcode
    bit = 0x80 if masked else 0
    if length < 126:
        return bytes([first, bit | length])
    if length < 1 << 16:
        return bytes([first, bit | 126]) + struct.pack("!H", length)
    return bytes([first, bit | 127]) + struct.pack("!Q", length)


def frame(payload: bytes, opcode: int = TEXT, *, fin: bool = True, rsv: int = 0, key: bytes = b"\1\2\3\4") -> bytes:
    repeated = key * (len(payload) // 4 + 1)
    body = (int.from_bytes(payload, "big") ^ int.from_bytes(repeated[: len(payload)], "big")).to_bytes(
        len(payload), "big"
    )
    return head(len(payload), opcode, fin=fin, rsv=rsv) + key + body


def close_frame(code: int, reason: bytes = b"") -> bytes:
    return frame(struct.pack("!H", code) + reason, CLOSE)


def upgrade(path: str = "/ws", *, extra: str = "", key: str = "", host: str = "x") -> bytes:
    key = key or base64.b64encode(os.urandom(16)).decode()
    return (
        f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n{extra}\r\n"
    ).encode("latin-1")


class Raw:
    """A TCP connection to the gateway with a frame reader."""

    def __init__(self, port: int, *, receive_buffer: int = 0, source: str = "127.0.0.1") -> None:
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(READ_S_MAX)
        self.socket.bind((source, 0))
        self.socket.connect(("127.0.0.1", port))
        self.buffer = b""

    def __enter__(self) -> "Raw":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def reset(self) -> None:
        """Ends with RST instead of FIN."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def response(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        """Sends a request head; status, lower-case headers and body of the answer. What follows 101 stays readable."""
        if request:
            self.send(request)
        while b"\r\n\r\n" not in self.buffer:
            self._more()
        top, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        lines = top.decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, value in (line.split(":", 1) for line in lines[1:])}
        length = int(headers.get("content-length", 0))
        body = self._take(length)
        return int(lines[0].split()[1]), headers, body

    def open(self, path: str = "/ws", *, extra: str = "") -> dict[str, str]:
        status, headers, body = self.response(upgrade(path, extra=extra))
        assert status == 101, (status, body)
        return headers

    def read(self) -> Frame:
        first, second = self._take(2)
        assert not second & 0x80, "a server must not mask"
        length = second & 0x7F
        if length == 126:
            length = struct.unpack("!H", self._take(2))[0]
        elif length == 127:
            length = struct.unpack("!Q", self._take(8))[0]
        return Frame(first & 15, self._take(length), bool(first & 0x80), bool(first & 0x40))

    def read_close(self) -> int:
        """The code of the next close frame; other frames before it are passed over."""
        while (got := self.read()).opcode != CLOSE:
            pass
        return got.close_code

    def ended(self) -> bool:
        """Whether the server ends the TCP connection; whatever it still sends is discarded."""
        try:
            while self.socket.recv(65536):
                pass
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False
        return True

    def _take(self, count: int) -> bytes:
        while len(self.buffer) < count:
            self._more()
        taken, self.buffer = self.buffer[:count], self.buffer[count:]
        return taken

    def _more(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise EOFError(f"the server ended the connection; unread: {self.buffer[:200]!r}")
        self.buffer += data
