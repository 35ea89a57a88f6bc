"""The vocabulary between profiles and the gateway: what a profile is told, and what it may answer.

A profile decides and does nothing: each `on_*` method yields actions and the gateway carries them out, so a test is
`next(steps) == Reply(...)`. `answer = yield Verify(...)` and `answer = yield Call(...)` are the only ways to learn
something; what an upstream raises is raised at that `yield`.
Rule: no event loop, no I/O and no clock in a profile; the time comes with the session.
"""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, runtime_checkable

from tidegate.calls import Place


@dataclass(slots=True)
class Upgrade:
    """A client's request to connect, before anything was answered."""

    conn: int
    uuid: str  # the connection's name for clients and backends
    peer: str
    path: str
    query: Mapping[str, str]  # percent-decoded; "" where a name came with two values
    headers: Mapping[str, str]  # lower-case names that the profile asked for
    now: float  # seconds since the epoch


@dataclass(slots=True)
class Session:
    """Who is on a connection: `data` is what the profile gave with `Admit`, kept by the engine."""

    conn: int
    data: bytes
    now: float
    uuid_of: Callable[[int], str] = field(repr=False, compare=False)

    @property
    def uuid(self) -> str:
        return self.uuid_of(self.conn)


@dataclass(slots=True)
class Request:
    """A backend's call to this gateway."""

    method: str
    message: Any  # the request message, by its attributes
    seconds: float  # left until its caller gives up
    metadata: Mapping[str, str]  # lower-case names
    now: float


@dataclass(slots=True)
class BusMessage:
    """One message from a backend, as the bus delivered it."""

    stream: str  # JetStream stream, Kafka topic, Redis channel
    subject: str
    data: bytes
    sequence: int  # position in the stream, from 1; 0 where the bus has none
    received_at: float  # time.perf_counter() when it came in


# --- actions ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Admit:
    """Accepts the upgrade: joins `rooms`, then sends `texts`, then closes if `close` says so."""

    session: bytes
    rooms: Sequence[str] = ()
    texts: Sequence[bytes] = ()
    user: str | None = None  # counted against the limit of connections a user
    subprotocol: str | None = None
    close: tuple[int, str] | None = None
    dialect: int = 0  # which of `ProfileSpec.notices` the client understands


@dataclass(slots=True)
class Refuse:
    """Answers the upgrade with an HTTP status."""

    status: int
    body: bytes
    retry_after_s: int | None = None


@dataclass(slots=True)
class Reply:
    """A text (or binary) message to the connection that is being served."""

    payload: bytes
    text: bool = True


@dataclass(slots=True)
class Send:
    """A text message to any connection of this node."""

    conn: int
    payload: bytes
    ticket: int = 0  # > 0: a `Wait` for it is answered by "queued", "full" or "gone"


@dataclass(slots=True)
class Join:
    room: str
    conn: int | None = None  # None = the connection that is being served, here and below


@dataclass(slots=True)
class Leave:
    room: str
    conn: int | None = None


@dataclass(slots=True)
class SetSession:
    data: bytes


@dataclass(slots=True)
class Publish:
    """A text message to every member of a room but `exclude`; `all_nodes` also on other gateways (at most once)."""

    room: str
    payload: bytes
    exclude: int | str | None = None  # a conn of this node or any connection's UUID
    all_nodes: bool = False


@dataclass(slots=True)
class PublishRooms:
    """The same text message to each of many rooms of this node, encoded once. Who is in two of them gets it twice."""

    rooms: Sequence[str]
    payload: bytes


@dataclass(slots=True)
class Identify:
    """Says who is on this connection from now on. Answered at once: False if the user has no connection left."""

    user: str


@dataclass(slots=True)
class ToNodes:
    """A message for the other nodes, in an envelope of the profile's own; its `on_node` gets it there. At most once."""

    data: bytes


@dataclass(slots=True)
class ToBus:
    """A message for the backends."""

    subject: str
    data: bytes


@dataclass(slots=True)
class Close:
    code: int
    reason: str = ""
    conn: int | None = None


@dataclass(slots=True)
class Count:
    """Adds one to the error metric, whose type is `label` or else `name`; `auth_failure` has a metric of its own.

    `detail` is logged, at most once a second for a name: say nothing in it that a client or a backend sent.
    """

    name: str
    label: str = ""
    detail: str = ""


@dataclass(slots=True)
class Add:
    """Adds to a metric that the profile declared in `ProfileSpec.families`. A label is never a client's own word."""

    family: str
    label: str = ""
    amount: int = 1


@dataclass(slots=True)
class Observe:
    """Adds a duration to a histogram that the profile declared in `ProfileSpec.families`."""

    family: str
    seconds: float
    label: str = ""


@dataclass(slots=True)
class Span:
    """Something that has just ended, for whoever traces. Ids are welcome in `attributes`, contents are not."""

    name: str
    seconds: float
    attributes: Mapping[str, str | int | bool] = field(default_factory=dict)
    parent: str = ""  # W3C traceparent, as it came with the request


@dataclass(slots=True)
class Log:
    """A line at level debug. `fields` are ids, which JSON lines carry as keys; never a content or a token."""

    text: str
    fields: Mapping[str, str | int] = field(default_factory=dict)


@dataclass(slots=True)
class Verify:
    """Asks for a token to be checked. Answered at once with `Claims` or `Rejected`."""

    token: str


@dataclass(slots=True)
class Call:
    """A request to an upstream, by name. The answer is what its contract says; the connection's next message waits."""

    upstream: str
    method: str  # one of few words: metrics are labelled with it
    payload: Any = None


@dataclass(slots=True)
class Now:
    """Asks for the time, where an answer was long in coming. Answered at once, by seconds since the epoch."""


@dataclass(slots=True)
class Wait:
    """Waits for a `Wake` of that ticket. Answered by what it says, or by None when the time is up."""

    ticket: int  # the profile's own numbering; 0 = only time passes
    seconds: float


@dataclass(slots=True)
class Wake:
    """Ends every `Wait` for the ticket."""

    ticket: int
    answer: Any = True


@dataclass(slots=True)
class Together:
    """Several at once. Answered, when the last has ended, by a list: each one's answer, or the Exception it raised."""

    waits: "Sequence[Call | Wait]"


@dataclass(slots=True)
class Claims:
    """A verified token's content."""

    values: Mapping[str, Any]


@dataclass(slots=True)
class Rejected:
    """Why a token was not accepted: a word for the log and the metric, never shown to the client."""

    reason: str


Action: TypeAlias = (
    Admit
    | Refuse
    | Reply
    | Send
    | Join
    | Leave
    | SetSession
    | Identify
    | Publish
    | PublishRooms
    | ToNodes
    | ToBus
    | Close
    | Count
    | Add
    | Observe
    | Span
    | Log
    | Verify
    | Call
    | Now
    | Wait
    | Wake
    | Together
)
Steps: TypeAlias = Generator[Action, Any, None]
# Of a bus message. What they return goes on by itself: nothing waits behind it, but the message is served when it ends
RecordSteps: TypeAlias = Generator[Action, Any, Steps | None]


class Profile(Protocol):
    """A protocol's decisions. Implementations live in `profiles/`, one file each, and export a `PROFILE`."""

    def on_open(self, upgrade: Upgrade) -> Steps:
        """Must yield exactly one `Admit` or `Refuse`."""

    def on_message(self, session: Session, payload: bytes, text: bool) -> Steps: ...

    def on_bus(self, message: BusMessage) -> Iterable[Action]:
        """`Publish`, `PublishRooms`, `Send`, `Count` and `Add` only."""

    def on_close(self, session: Session, code: int) -> Steps: ...


@dataclass(frozen=True)
class MetricNames:
    """What the original calls its metrics; they are part of a profile's contract. Full names, as scraped."""

    connections_current: str
    connections_total: str
    rooms: str
    messages_received: str
    messages_sent: str
    messages_from_bus: str
    auth_success: str
    auth_failure: str
    latency: str
    latency_buckets: tuple[float, ...]
    errors: str  # counter with the label `type`


@dataclass(frozen=True)
class Family:
    """A metric of a contract that `MetricNames` has no place for: what `Add` counted and what the engine did."""

    name: str  # full, as scraped; a counter if it ends in _total
    text: str
    label: str = ""  # its name, or names with commas between; "" = the metric is one number
    known: tuple[str, ...] = ()  # label values that are there from the start; several with commas between
    engine: Mapping[str, str] = field(default_factory=dict)  # label value ("" without) -> key of `Engine.stats`
    buckets: tuple[float, ...] = ()  # a histogram of what `Observe` told: seconds, ascending
    # read at a scrape: "bus_lag", a gauge by stream; "circuits", a gauge by upstream, 0 closed, 1 open;
    # "seconds:UPSTREAM", a histogram of the calls to it, by method
    source: str = ""


@dataclass(frozen=True)
class BackendMetrics:
    """Full names of what is counted of calls to the upstream, and of messages between nodes."""

    requests: str  # counter with the labels `call` and `status`
    seconds: str  # histogram with the label `call`
    lookups: str  # counter with the label `result`: answers that were shared
    published: str
    received: str


@dataclass(frozen=True)
class FromEnvironment:
    """What a profile made of variables that are no plain text of one setting."""

    values: Mapping[str, object]  # setting key -> value as the configuration file would have it
    names: Mapping[str, str]  # setting key -> the variable it comes from
    warnings: Sequence[str] = ()


@dataclass(frozen=True)
class Notices:
    """Texts that the engine says by itself, in one dialect; None = not said.

    Where one has `$UNIX_SECONDS` or `$UNIX_MILLIS` in it, the time comes there, as digits.
    """

    # answers a message beyond ws.message_rate, which is discarded; None = its sender is closed with 1008
    excess: bytes | None = None
    silence: bytes | None = None  # comes before the close frame with `ProfileSpec.silence_code`
    farewell: bytes | None = None  # comes before the close frame of a drain


@dataclass(frozen=True)
class ProfileSpec:
    """Everything the composition root must know of a profile; each file in `profiles/` exports one as `PROFILE`."""

    name: str
    summary: str
    ws_paths: tuple[str, ...]
    headers: tuple[str, ...]  # request headers that `on_open` reads
    # environment variable -> setting key; a prefix rule first ("GATEWAY_" + key with "." -> "_"), then single names
    env_prefix: str
    env_names: Mapping[str, str]
    defaults: Mapping[str, Any]  # setting key -> default where it differs from config.py
    bus: str | None  # setting key that holds the bus URL, None = no bus
    needs_token: bool
    metrics: MetricNames | None
    build: Callable[[Any], Profile]  # Settings -> Profile
    read_environment: Callable[[Mapping[str, str]], FromEnvironment] | None = None  # wins over `env_names`
    dotenv: bool = False  # `.env` in the working directory counts where the environment says nothing
    # a key of config.yaml that is no setting is the variable SECTION_KEY, which the environment may overrule
    yaml_variables: bool = False
    # name in a `Call` -> setting key of the upstream's URL, or a URL of no setting; an empty URL is no upstream
    upstreams: Mapping[str, str] = field(default_factory=dict)
    registry: str | None = None  # setting key of the URL of the registry that `Call("registry", ...)` asks
    # full names of the gRPC services that backends call, all with the methods of the first
    services: tuple[str, ...] = ()
    # setting key -> variable without which nothing starts, unless the upstream is in the process
    required: Mapping[str, str] = field(default_factory=dict)
    families: tuple[Family, ...] = ()
    backend_metrics: BackendMetrics | None = None
    notices: tuple[Notices, ...] = ()  # by dialect
    # only messages that hold these bytes count in full, others as a hundredth; None = all count
    rate_mark: bytes | None = None
    silence_code: int = 0  # close code for who was not heard within ws.pong_timeout; 0 = just dropped
    # path -> media type and body: the whole of what plain HTTP gets beside /ready; None = the gateway's own API
    pages: Mapping[str, tuple[str, bytes]] | None = None
    upgrade_required: int = 426  # HTTP status of a plain request to a WebSocket path


@dataclass(frozen=True, slots=True)
class BusRule:
    """Where a plain event goes, so that the engine can send it there without asking `on_bus`.

    Plain is a JSON object with, at its top, a room or else a user as a string (a user also as an integer), and perhaps
    an excluded connection. Rule: `on_bus` yields for such an event exactly what is said here, and serves all others.
    """

    room: str  # key of the room
    user: str  # key of the user, looked at where there is no room
    exclude: str  # key of the excluded connection's UUID
    user_rooms: tuple[str, ...]  # rooms of a user: each of these with the user's name behind it


@runtime_checkable
class HasBusRule(Protocol):
    """A profile whose plain events need no decision."""

    def bus_rule(self) -> BusRule: ...


@runtime_checkable
class HasOverdue(Protocol):
    """A profile whose clients say who they are by a message, within `ws.auth_timeout`."""

    def on_overdue(self, session: Session) -> Steps:
        """Nobody was identified in time; told once a connection, after what it sent before."""


@runtime_checkable
class HasNodes(Protocol):
    """A profile with an envelope of its own for messages between nodes."""

    def on_node(self, data: bytes, now: float) -> Iterable[Action]:
        """What another node sent with `ToNodes`, or this one: `PublishRooms`, `Count` and `Add` only."""


@runtime_checkable
class HasUrgent(Protocol):
    """A profile for which some messages must not wait behind an upstream's answer to the same client."""

    def is_urgent(self, payload: bytes) -> bool:
        """If so, it is served before what came earlier and still waits. Its steps wait for nothing."""


@runtime_checkable
class HasRequests(Protocol):
    """A profile that backends call, by the services of `ProfileSpec.services`."""

    def on_request(self, request: Request) -> Generator[Action, Any, Mapping[str, Any]]:
        """What it returns are the fields of the answer."""


@runtime_checkable
class HasRecords(Protocol):
    """A profile that must ask before it knows who gets a bus message. Then `on_bus` is not called."""

    def on_record(self, message: BusMessage) -> RecordSteps:
        """In order for each stream and subject; a batch is served when the steps of all of it have ended."""


@runtime_checkable
class HasRegistry(Protocol):
    """A profile whose connections are in a registry."""

    def on_taken(self, place: Place, now: float) -> Iterable[Action]:
        """The device has connected to another node since. That may be known before `register` has answered."""


@runtime_checkable
class HasWelcome(Protocol):
    """A profile that describes itself at `/` and `/health` in the original's words."""

    def welcome(self, health: Mapping[str, Any]) -> Mapping[str, Any]: ...
