"""How people write durations, sizes and lists in settings, and how we write them back.

Durations follow Go (`10s`, `1m30s`, `500ms`), because the gateways we replace are written in it; a bare number is
refused, since nobody can tell whether 10 meant seconds or nanoseconds. Sizes are bytes, or bytes with a unit
(`64KiB`, `1MiB`). Rule: pure text in, numbers out. A ValueError's text is a whole sentence that says what is allowed.
"""

import re
from decimal import Decimal

DURATION_EXAMPLES = "10s, 1m30s, 500ms or 1h"
SIZE_EXAMPLES = "65536, 64KiB, 1MiB or 256MB"


def parse_duration(value: object) -> float:
    """Seconds. Takes a text in Go's syntax; numbers only where the unit can't matter (0)."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"a duration is a text such as {DURATION_EXAMPLES}")
    text = str(value).strip()
    if text in {"0", "0.0", "-0"}:
        return 0.0
    if re.fullmatch(r"[+-]?\d+(\.\d+)?", text):
        raise ValueError(f"a duration needs a unit: write {text}s for seconds, {text}ms for milliseconds")
    if len(text) > TEXT_MAX or not _DURATION.fullmatch(text):
        raise ValueError(f"a duration is written like {DURATION_EXAMPLES}")
    sign = -1 if text.startswith("-") else 1
    total = sum(Decimal(number) * _SECONDS[unit] for number, unit in _DURATION_PART.findall(text))
    if total > DURATION_S_MAX:
        raise ValueError("a duration is at most 10000h")
    return sign * float(total)


def format_duration(seconds: float) -> str:
    """The shortest text that `parse_duration` reads back, to the microsecond."""
    rest = round(abs(seconds) * 1_000_000)
    if rest == 0:
        return "0s"
    text = ""
    for unit, microseconds in (("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000), ("ms", 1_000), ("us", 1)):
        count, rest = divmod(rest, microseconds)
        text += f"{count}{unit}" if count else ""
    return f"-{text}" if seconds < 0 else text


def parse_size(value: object) -> int:
    """Bytes."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    found = _SIZE.fullmatch(value.strip()) if isinstance(value, str) and len(value) <= TEXT_MAX else None
    if found is None or (unit := found[2].lower()) not in _BYTES:
        raise ValueError(f"a size is a whole number of bytes or has a unit, such as {SIZE_EXAMPLES}")
    return int(found[1]) * _BYTES[unit]


def format_size(size: int) -> str:
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size and size % scale == 0:
            return f"{size // scale}{unit}"
    return str(size)


def split_list(value: object) -> tuple[str, ...]:
    """A list as YAML gives it, or a text separated by commas or blanks; a lone comma is the empty list."""
    if isinstance(value, str):
        return tuple(re.split(r"[,\s]+", value.strip(", \t\r\n"))) if value.strip(", \t\r\n") else ()
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
        raise ValueError("a list of texts; in an environment variable, separated by commas or blanks")
    return tuple(item.strip() for item in value if item.strip())


# No setting needs a longer number; parsing an endless one would cost seconds
TEXT_MAX = 64

# 10000 h is beyond every sensible wait and far below where milliseconds overflow 64 bits
DURATION_S_MAX = 10_000 * 3600

_NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"
_UNIT = r"(h|ms|m|s|us|\u00b5s|\u03bcs|ns)"
_DURATION = re.compile(rf"[+-]?(?:{_NUMBER}{_UNIT})+", re.ASCII)
_DURATION_PART = re.compile(_NUMBER + _UNIT, re.ASCII)
_SECONDS = {
    "h": Decimal(3600),
    "m": Decimal(60),
    "s": Decimal(1),
    "ms": Decimal("0.001"),
    "us": Decimal("0.000001"),
    "\u00b5s": Decimal("0.000001"),  # micro sign
    "\u03bcs": Decimal("0.000001"),  # Greek mu; Go takes both
    "ns": Decimal("0.000000001"),
}

_SIZE = re.compile(r"(\d+)\s*([A-Za-z]*)", re.ASCII)
_BYTES = {"": 1, "b": 1}
_BYTES |= {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}
_BYTES |= {"kb": 10**3, "mb": 10**6, "gb": 10**9}
