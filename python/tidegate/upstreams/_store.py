"""Sets and lists of a Redis inside the process, for whoever tries a profile that keeps something in one.

Commands, replies and refusals are those of Redis, as far as profiles use them. Rules: the time is an argument and there
is no I/O; what is kept has a bound, beyond which writes are refused, as by a Redis whose policy is noeviction.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar
from weakref import WeakValueDictionary

from tidegate.calls import RedisCommand, RedisRequest
from tidegate.upstreams._lane import no_answer
from tidegate.upstreams._meter import REFUSED

# As much as a demo or a test fills; a laptop keeps it without swapping
BYTES_MAX = 64 * 1024 * 1024
# About what Python takes for one value beside its bytes
VALUE_BYTES = 100

Value: TypeAlias = set[bytes] | list[bytes]
Kind = TypeVar("Kind", set[bytes], list[bytes])
Arguments: TypeAlias = Sequence[bytes]


def store_named(name: str) -> "Store":
    # Weak: a store lives as long as an upstream that uses it.
    return STORES.get(name) or STORES.setdefault(name, Store())


@dataclass(slots=True)
class Entry:
    value: Value
    size: int
    until: float = math.inf


class RefusedError(Exception):
    """What Redis answers with an error, by its code."""


class Store:
    def __init__(self, bytes_max: int = BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._entries: dict[bytes, Entry] = {}

    def answer(self, request: RedisRequest, now: float) -> list[Any]:
        """`now` is in seconds of a clock that never goes back. All commands are done, whichever is refused; of atomic
        ones none is, if one of them can't be understood."""
        replies: list[Any] = []
        refused: list[tuple[str, str]] = []
        if request.is_atomic:
            refused = [(named(command), str(fault)) for command in request.commands if (fault := _fault(command))]
        for command in () if refused else request.commands:
            try:
                replies.append(self._do(command, now))
            except RefusedError as error:
                refused.append((named(command), str(error)))
        if refused:
            name, why = refused[0]
            raise no_answer(REFUSED, f"The store in this process refused {name}: {why}")
        return replies

    def _do(self, command: RedisCommand, now: float) -> Any:
        if fault := _fault(command):
            raise fault
        serve, _, _ = COMMANDS[named(command)]
        return serve(self, [encoded(argument) for argument in command[1:]], now)

    # --- keys --------------------------------------------------------------------------------------------------------

    def _ping(self, arguments: Arguments, _now: float) -> bytes:
        return arguments[0] if arguments else b"PONG"

    def _exists(self, keys: Arguments, now: float) -> int:
        return sum(self._entry(key, now) is not None for key in keys)

    def _del(self, keys: Arguments, now: float) -> int:
        return sum(self._entry(key, now) is not None and self._drop(key) for key in keys)

    def _expire(self, arguments: Arguments, now: float) -> int:
        key, seconds = arguments[0], number(arguments[1])
        entry = self._entry(key, now)
        if entry is None:
            return 0
        entry.until = now + seconds
        self._entry(key, now)
        return 1

    def _rename(self, arguments: Arguments, now: float) -> bytes:
        old, new = arguments
        if self._entry(old, now) is None:
            raise RefusedError("ERR no such key")
        entry = self._entries.pop(old)
        self._drop(new)
        self._entries[new] = entry
        return b"OK"

    # --- sets and lists ----------------------------------------------------------------------------------------------

    def _sadd(self, arguments: Arguments, now: float) -> int:
        key, *members = arguments
        kept = self._written(key, set, now)
        before = len(kept)
        for member in members:
            if member not in kept:
                kept.add(member)
                self._grow(key, member)
        return len(kept) - before

    def _sismember(self, arguments: Arguments, now: float) -> int:
        return int(arguments[1] in self._read(arguments[0], set, now))

    def _sscan(self, arguments: Arguments, now: float) -> list[Any]:
        """All at once, as Redis may do with small sets: the one cursor that anybody gets is the last."""
        key, cursor, options = arguments[0], number(arguments[1]), arguments[2:]
        members = self._read(key, set, now)
        if members and options and (len(options) != 2 or options[0].upper() != b"COUNT" or number(options[1]) < 1):
            raise RefusedError("ERR syntax error")
        return [b"0", [] if cursor else list(members)]

    def _rpush(self, arguments: Arguments, now: float) -> int:
        key, *values = arguments
        kept = self._written(key, list, now)
        for value in values:
            kept.append(value)
            self._grow(key, value)
        return len(kept)

    # --- what is kept ------------------------------------------------------------------------------------------------

    def _entry(self, key: bytes, now: float) -> Entry | None:
        entry = self._entries.get(key)
        if entry is not None and now >= entry.until:
            self._drop(key)
            return None
        return entry

    def _read(self, key: bytes, kind: type[Kind], now: float) -> Kind:
        entry = self._entry(key, now)
        value = kind() if entry is None else entry.value
        if not isinstance(value, kind):
            raise RefusedError("WRONGTYPE")
        return value

    def _written(self, key: bytes, kind: type[Kind], now: float) -> Kind:
        value = self._read(key, kind, now)
        if self._bytes > self._bytes_max:
            self._sweep(now)
        if self._bytes > self._bytes_max:
            raise RefusedError("OOM")
        if key not in self._entries:
            self._entries[key] = Entry(value, 0)
            self._grow(key, key)
        return value

    def _grow(self, key: bytes, value: bytes) -> None:
        size = VALUE_BYTES + len(value)
        self._entries[key].size += size
        self._bytes += size

    def _drop(self, key: bytes) -> bool:
        entry = self._entries.pop(key, None)
        self._bytes -= entry.size if entry else 0
        return entry is not None

    def _sweep(self, now: float) -> None:
        for key in list(self._entries):
            self._entry(key, now)


def named(command: RedisCommand) -> str:
    name = command[0]
    return (name.decode("ascii", "replace") if isinstance(name, bytes) else str(name)).upper()


def encoded(argument: str | bytes | int) -> bytes:
    if type(argument) not in (str, bytes, int):
        raise TypeError(f"a Redis takes text, bytes and whole numbers, not {type(argument).__name__}")
    return argument if isinstance(argument, bytes) else str(argument).encode()


def number(argument: bytes) -> int:
    try:
        return int(argument)
    except ValueError:
        raise RefusedError("ERR value is not an integer or out of range") from None


def _fault(command: RedisCommand) -> RefusedError | None:
    name = named(command)
    if name not in COMMANDS:
        return RefusedError("ERR unknown command")
    _, least, most = COMMANDS[name]
    if least <= len(command) - 1 <= most:
        return None
    return RefusedError("ERR wrong number of arguments")


ANY = 1 << 20  # what Redis takes in one command
Serve: TypeAlias = Callable[[Store, Arguments, float], Any]
# With the least and most arguments
COMMANDS: dict[str, tuple[Serve, int, int]] = {
    "PING": (Store._ping, 0, 1),
    "EXISTS": (Store._exists, 1, ANY),
    "DEL": (Store._del, 1, ANY),
    "EXPIRE": (Store._expire, 2, 2),
    "RENAME": (Store._rename, 2, 2),
    "SADD": (Store._sadd, 2, ANY),
    "SISMEMBER": (Store._sismember, 2, 2),
    "SSCAN": (Store._sscan, 2, 4),
    "RPUSH": (Store._rpush, 2, ANY),
}

STORES: WeakValueDictionary[str, Store] = WeakValueDictionary()
