"""What a `Call` carries to an upstream or a registry and what it is answered by: plain data, one shape a kind.

A profile builds the request and reads the answer; who asks over the wire knows neither the profile nor its protocol.
Rule: no I/O here, and no library of a wire format.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias


@dataclass(slots=True)
class HttpRequest:
    """To an HTTP upstream. Answered by an `HttpAnswer`, or UpstreamError is raised."""

    verb: str
    path: str  # below the upstream's URL, percent-encoded, with a leading slash
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None  # JSON
    # > 0: the same verb and path may share one answer while it is on its way, and its 200 for so many seconds after
    shared_s: float = 0.0


@dataclass(slots=True)
class HttpAnswer:
    """Any status is an answer."""

    status: int
    body: bytes


@dataclass(slots=True)
class RpcRequest:
    """To a gRPC upstream. Answered by the response message, read by its attributes, or UpstreamError is raised.

    A status other than OK is no answer: `UpstreamError.outcome` has its name in lower case, such as `not_found`.
    """

    method: str  # package.Service/Method
    fields: Mapping[str, Any] = field(default_factory=dict)  # of the request message; a nested message is a mapping
    address: str = ""  # host:port, for the upstream `grpc:`, which serves many; "" = the upstream's own
    timeout_s: float = 0.0  # for all tries together; 0 = the upstream's
    try_s: float = 0.0  # for each of them at most; 0 = all that is left, or a share of it for one that insists
    retries: int = 0  # repeats it so often, on UNAVAILABLE ...
    # ... and with `insists` on DEADLINE_EXCEEDED and RESOURCE_EXHAUSTED too: only for what may arrive twice
    insists: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)


RedisCommand: TypeAlias = Sequence[str | bytes | int]


@dataclass(slots=True)
class RedisRequest:
    """To a Redis upstream: commands sent together. Answered by a list with one reply each, as bytes, int, list or None.

    UpstreamError is raised if Redis did not answer, or answered one of them with an error; those before it were done.
    """

    commands: Sequence[RedisCommand]
    is_atomic: bool = False  # MULTI and EXEC


@dataclass(frozen=True, slots=True)
class Place:
    """A device of a user, connected to this node."""

    user: str
    device: str
    conn: int
    connected_at: int  # seconds since the epoch


@dataclass(frozen=True, slots=True)
class Enter:
    """To a registry, method `register`: is `place` to be known to all nodes?

    Answered by True; by False, and nothing changed, if the user has `others_max` other devices already. UpstreamError
    if the registry can't tell. The same user and device on another connection or node is replaced.
    """

    place: Place
    others_max: int
