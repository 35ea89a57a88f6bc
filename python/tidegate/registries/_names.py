"""Which users and devices can be part of a key: their names come from tokens and from backends.

A slash would let one user's range of keys read another's, so no registry takes it, whether it has such keys or not.
Rule: a name is refused before anything is asked; one that could never be registered has no devices.
"""

import re

from tidegate.calls import Place
from tidegate.errors import UpstreamError

# A client that comes with such a name is refused by whoever asked; the word is a gRPC status
INVALID = "invalid_argument"
# Longer ones than these are attacks: a user's name is a number, a UUID or an e-mail address, a device's is a UUID.
# No slash, no control characters, and no half of a surrogate pair, which no key can hold.
USER = re.compile(r"[^/\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,256}")
DEVICE = re.compile(r"[^/\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,128}")


def key_of(place: Place) -> str:
    """UpstreamError if it could not be registered."""
    if not is_user(place.user) or not DEVICE.fullmatch(place.device):
        raise UpstreamError(
            "a user's or device's name cannot be part of a registry's key",
            "Names have no / and no control characters; a user's has at most 256 characters, a device's 128.",
            INVALID,
        )
    return f"{place.user}/{place.device}"


def is_user(name: str) -> bool:
    return USER.fullmatch(name) is not None
