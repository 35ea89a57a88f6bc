"""Fails when the hub gains a dependency that could have a socket, a clock or a thread.

`clippy.toml` in rust_core/hub forbids the standard library's own; this list is the rest of the wall.
Rule: a crate is added here only after its source was read for I/O.
"""

import subprocess
import sys

ALLOWED = {
    "allocator-api2": "hashbrown's allocator trait",
    "base64": "Sec-WebSocket-Accept",
    "block-buffer": "sha1",
    "bytemuck": "roaring: safe casts",
    "byteorder": "roaring: serialisation",
    "cfg-if": "macros only",
    "const-oid": "sha1: constants",
    "cpufeatures": "sha1: asks the processor what it can",
    "crc32fast": "flate2",
    "crypto-common": "sha1: traits",
    "digest": "sha1: traits",
    "equivalent": "hashbrown: a trait",
    "fearless_simd": "roaring: vector instructions",
    "fearless_simd_macros": "roaring: macros at compile time",
    "flate2": "permessage-deflate, in memory",
    "foldhash": "hashbrown's default hash",
    "generic-array": "sha1",
    "hashbrown": "room table",
    "httparse": "request heads",
    "hybrid-array": "sha1",
    "libc": "cpufeatures on some processors: constants only",
    "libm": "roaring: arithmetic",
    "memchr": "search in bytes",
    "miniz_oxide": "flate2",
    "adler2": "flate2",
    "simd-adler32": "flate2",
    "proc-macro2": "macros at compile time",
    "quote": "macros at compile time",
    "roaring": "members of large rooms",
    "sha1": "Sec-WebSocket-Accept",
    "simdutf8": "text messages",
    "smallvec": "rooms of one connection",
    "syn": "macros at compile time",
    "tidegate-hub": "itself",
    "typenum": "sha1: numbers as types",
    "unicode-ident": "macros at compile time",
    "zlib-rs": "flate2's engine, in Rust",
}


def dependencies() -> set[str]:
    command = ["cargo", "tree", "--package", "tidegate-hub", "--edges", "normal", "--prefix", "none", "--format", "{p}"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()  # noqa: S603
    return {line.split()[0] for line in lines if line}


def main() -> int:
    strangers = sorted(dependencies() - ALLOWED.keys())
    for name in strangers:
        sys.stderr.write(
            f"tidegate-hub depends on {name}, which nobody has read for sockets, clocks and threads. "
            "Do without it, or move its use to rust_core/net, or read it and add it to tools/hub_is_pure.py.\n"
        )
    return 1 if strangers else 0


if __name__ == "__main__":
    sys.exit(main())
