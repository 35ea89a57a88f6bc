"""Frames against RFC 6455: every violation ends its own connection with the code of section 7.4, and nobody else's.

The rows of the CVE table in the security notes stand here by name.
"""

import struct
import zlib

import pytest

from tests.gateways import Gateway
from tests.wire.client import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Raw, close_frame, frame, head

MASK = bytes(4)
VIOLATIONS = {
    "unmasked text": (head(2, TEXT, masked=False) + b"hi", 1002),
    "RSV1 without a compressed message's start": (frame(b"", PING, rsv=4), 1002),
    "RSV2": (frame(b"hi", rsv=2), 1002),
    "RSV3": (frame(b"hi", rsv=1), 1002),
    "opcode 3": (frame(b"hi", 3), 1002),
    "opcode 11": (frame(b"hi", 11), 1002),
    "a ping of 126 bytes": (frame(b"a" * 126, PING), 1002),
    "a fragmented ping": (frame(b"a", PING, fin=False), 1002),
    "a continuation of nothing": (frame(b"a", CONTINUATION), 1002),
    "a new message inside another": (frame(b"a", fin=False) + frame(b"b"), 1002),
    "a length in more bytes than it needs": (bytes([0x81, 0xFE, 0, 5]) + b"\1\2\3\4" + b"hello", 1002),
    "a 64-bit length for a small frame": (bytes([0x81, 0xFF]) + struct.pack("!Q", 5) + b"\1\2\3\4hello", 1002),
    "length 2^63": (head(1 << 63, BINARY), 1002),
    "length 2^64-1": (head((1 << 64) - 1, BINARY), 1002),
    "length 2^63-1 (CVE-2020-27813)": (head((1 << 63) - 1, BINARY) + MASK, 1009),
    "length 2^32-1": (head((1 << 32) - 1, BINARY) + MASK, 1009),
    "length 2^31": (head(1 << 31, BINARY) + MASK, 1009),
    "one byte over the limit": (head((64 << 10) + 1, BINARY) + MASK, 1009),
    "over the limit by fragments (CrowCpp 1.3.4)": (
        frame(b"a" * 40_000, fin=False) + frame(b"a" * 40_000, CONTINUATION),
        1009,
    ),
    "1,100 empty fragments (CVE-2026-48779)": (
        frame(b"", fin=False) + frame(b"", CONTINUATION, fin=False) * 1100,
        (1008, 1009),
    ),
    "text that is not UTF-8": (frame(b"\xff"), 1007),
    "a surrogate in text": (frame(b"\xed\xa0\x80"), 1007),
    "text that breaks off inside a character": (frame(b"\xe2\x82"), 1007),
    "a bad byte in an unfinished frame": (head(1000, TEXT) + b"\0\0\0\0" + b"abc\xff", 1007),
    "a bad byte across fragments": (frame(b"\xe2\x82", fin=False) + frame(b"\x41", CONTINUATION, fin=False), 1007),
    "a close of one byte": (frame(b"a", CLOSE), 1002),
    "close code 0": (close_frame(0), 1002),
    "close code 1005": (close_frame(1005), 1002),
    "close code 1006": (close_frame(1006), 1002),
    "close code 1015": (close_frame(1015), 1002),
    "close code 2999": (close_frame(2999), 1002),
    "a close reason that is not UTF-8": (close_frame(1000, b"\xff"), 1007),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_violation_is_answered_with_its_close_code(strict: Gateway, name: str) -> None:
    data, expected = VIOLATIONS[name]
    with Raw(strict.port) as client:
        client.open()
        client.send(data)
        code = client.read_close()
        assert code in (expected if isinstance(expected, tuple) else (expected,))
        client.send(close_frame(code))
        assert client.ended()


def bomb(size: int) -> bytes:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return (compressor.compress(bytes(size)) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


def test_a_deflate_bomb_is_too_big_before_it_is_inflated(strict: Gateway) -> None:
    """CVE-2018-1000518: 100 MiB of zeros in 100 kB, and in 60 kB under the limit of a message."""
    for size in (100 << 20, 50 << 20):
        with Raw(strict.port) as client:
            client.open(extra="Sec-WebSocket-Extensions: permessage-deflate\r\n")
            before = strict.memory_bytes()
            client.send(frame(bomb(size), BINARY, rsv=4))
            assert client.read_close() == 1009
            assert strict.memory_bytes() - before < 16 << 20


@pytest.mark.parametrize(
    "payload", [b"\xff\xff\xff", b"\0", bomb(10) + b"\1\2\3"], ids=["noise", "half a block", "a tail"]
)
def test_broken_deflate_data_ends_its_connection_only(strict: Gateway, payload: bytes) -> None:
    with Raw(strict.port) as client, Raw(strict.port) as innocent:
        client.open(extra="Sec-WebSocket-Extensions: permessage-deflate\r\n")
        innocent.open()
        client.send(frame(payload, BINARY, rsv=4))
        got = client.read()
        assert got.opcode in {CLOSE, BINARY}
        innocent.send(frame(b"hello"))
        assert innocent.read().payload == b"hello"


def test_control_frames_between_fragments_are_answered_at_once(strict: Gateway) -> None:
    with Raw(strict.port) as client:
        client.open()
        client.send(frame(b"one ", fin=False) + frame(b"now", PING))
        assert client.read().payload == b"now"
        client.send(frame(b"two", CONTINUATION))
        assert client.read().payload == b"one two"


def test_an_unasked_pong_is_ignored(strict: Gateway) -> None:
    with Raw(strict.port) as client:
        client.open()
        client.send(frame(b"whatever", PONG) + frame(b"next"))
        assert client.read().payload == b"next"


def test_a_close_is_answered_with_its_code_and_then_the_server_ends_tcp(strict: Gateway) -> None:
    with Raw(strict.port) as client:
        client.open()
        client.send(close_frame(4321, b"bye"))
        assert client.read_close() == 4321
        assert client.ended()


def test_nothing_after_a_close_frame_is_read(strict: Gateway) -> None:
    with Raw(strict.port) as client:
        client.open()
        client.send(close_frame(1000) + frame(b"too late"))
        got = client.read()
        assert (got.opcode, got.close_code) == (CLOSE, 1000)


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_every_length_encoding_is_echoed(echo: Gateway, size: int, opcode: int) -> None:
    with Raw(echo.port) as client:
        client.open()
        client.send(frame(b"a" * size, opcode))
        got = client.read()
        assert (got.opcode, got.payload) == (opcode, b"a" * size)


def test_a_frame_cut_at_every_byte_is_echoed(echo: Gateway) -> None:
    data = frame(b"h\xc3\xa9llo", fin=False) + frame(b"x", PING) + frame(b"\xe2\x82\xac", CONTINUATION)
    with Raw(echo.port) as client:
        client.open()
        for byte in data:
            client.send(bytes([byte]))
        assert client.read().payload == b"x"
        assert client.read().payload == "héllo€".encode()


def inflated(payload: bytes) -> bytes:
    return zlib.decompressobj(-15).decompress(payload + b"\0\0\xff\xff")


def test_compression_is_used_both_ways_when_negotiated(echo: Gateway) -> None:
    text = b"tidegate " * 200
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = (compressor.compress(text) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]
    with Raw(echo.port) as client:
        headers = client.open(extra="Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n")
        assert "server_no_context_takeover" in headers["sec-websocket-extensions"]
        assert "client_no_context_takeover" in headers["sec-websocket-extensions"]
        client.send(frame(packed, rsv=4))
        got = client.read()
        plain = inflated(got.payload) if got.rsv1 else got.payload
        assert plain == text


def test_compression_is_not_offered_unless_enabled_by_the_client(echo: Gateway) -> None:
    with Raw(echo.port) as client:
        assert "sec-websocket-extensions" not in client.open()
