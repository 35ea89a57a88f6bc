"""The HTTP API, asked as a server would ask it; and the machine's load read from prepared texts."""

import asyncio
from collections.abc import Mapping
from typing import Any

import orjson
import pytest
from starlette.types import ASGIApp, Message
from tidegate.api.http import BODY_BYTES_MAX, EVENTS_MAX, Node, http_app, metrics_app
from tidegate.api.server import abstract_name, bind_abstract, bind_tcp, serve_http
from tidegate.api.system import System
from tidegate.errors import RESOURCES, BusError, StartError

KEY = "a-key-of-the-tests"
STATS = {"connections": 120, "connections_now": 37, "rooms_now": 12}


class Answer:
    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""

    def json(self) -> Any:
        return orjson.loads(self.body)


async def ask(
    app: ASGIApp, method: str, path: str, *, headers: Mapping[str, str] | None = None, chunks: tuple[bytes, ...] = ()
) -> Answer:
    """One request. Without the last chunk that a test leaves out, the body never ends."""
    answer = Answer()
    waiting = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    waiting.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> Message:
        return waiting.pop(0)

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            answer.body += message.get("body", b"")

    encoded = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    scope = {"type": "http", "method": method, "path": path, "headers": encoded, "query_string": b"", "root_path": ""}
    await app({**scope, "http_version": "1.1", "scheme": "http", "server": None, "client": None}, receive, send)
    return answer


class Recorded:
    """A node whose answers a test sets."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.published: list[bytes] = []
        self.room = 1 << 30  # events that the bus takes before it fails
        self.key = KEY

    async def publish(self, event: bytes) -> None:
        if len(self.published) >= self.room:
            raise BusError("down")
        self.published.append(event)

    def app(self, body_s: float = 5.0) -> ASGIApp:
        return http_app(
            Node(
                stats=lambda: STATS,
                why_not_ready=lambda: self.reason,
                health=lambda: {"status": "healthy"},
                publish=self.publish,
                publish_key=self.key,
                body_s=body_s,
            ),
            ("/ws",),
        )


async def publish(node: Recorded, body: bytes, key: str = KEY, **headers: str) -> Answer:
    return await ask(
        node.app(), "POST", "/api/publish", headers={"Authorization": f"Bearer {key}", **headers}, chunks=(body,)
    )


async def test_health_is_served_at_both_paths() -> None:
    for path in ("/", "/health"):
        answer = await ask(Recorded().app(), "GET", path)
        assert (answer.status, answer.json()) == (200, {"status": "healthy"})
        assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("reason", ["nats", "draining"])
async def test_ready_says_why_not(reason: str) -> None:
    node = Recorded()
    assert (await ask(node.app(), "GET", "/ready")).json() == {"status": "ready"}
    node.reason = reason
    answer = await ask(node.app(), "GET", "/ready")
    assert (answer.status, answer.json()) == (503, {"status": "not_ready", "reason": reason})


async def test_stats_have_the_names_of_the_contract() -> None:
    answer = await ask(Recorded().app(), "GET", "/stats")
    assert answer.json() == {"total_connections": 120, "current_connections": 37, "total_rooms": 12}


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/stats", 200), ("GET", "/no", 404), ("PUT", "/", 405)])
async def test_every_answer_allows_every_origin(method: str, path: str, status: int) -> None:
    answer = await ask(Recorded().app(), method, path)
    assert answer.status == status
    assert answer.headers["access-control-allow-origin"] == "*"


async def test_a_preflight_names_the_allowed_headers() -> None:
    answer = await ask(Recorded().app(), "OPTIONS", "/api/publish", headers={"Origin": "https://a.example"})
    assert answer.status == 204
    assert answer.headers["access-control-allow-headers"] == "Origin, Content-Type, Accept, Authorization"
    assert answer.headers["access-control-allow-origin"] == "*"


async def test_errors_are_json_and_quote_nothing_of_the_request() -> None:
    answer = await ask(Recorded().app(), "GET", "/<script>")
    assert answer.json()["error"] == "not_found"
    assert b"script" not in answer.body
    assert (await ask(Recorded().app(), "DELETE", "/ready")).json()["error"] == "method_not_allowed"


async def test_a_plain_request_on_a_websocket_path_gets_426() -> None:
    answer = await ask(Recorded().app(), "GET", "/ws")
    assert answer.status == 426
    assert answer.headers["sec-websocket-version"] == "13"
    assert answer.headers["upgrade"] == "websocket"


# --- publish ----------------------------------------------------------------------------------------------------------


async def test_publish_is_off_without_a_key_even_for_an_empty_one() -> None:
    node = Recorded()
    node.key = ""
    assert (await publish(node, b"{}", key="")).status == 404


@pytest.mark.parametrize(
    "given", ["Bearer wrong", "Bearer ", "", KEY, f"Basic {KEY}", f"Bearer {KEY}x", "Bearer \u00e9"]
)
async def test_publish_needs_the_key(given: str) -> None:
    node = Recorded()
    answer = await ask(node.app(), "POST", "/api/publish", headers={"Authorization": given}, chunks=(b"{}",))
    assert answer.status == 401
    assert KEY not in answer.body.decode()
    assert node.published == []


async def test_one_event_is_published_byte_for_byte() -> None:
    node = Recorded()
    answer = await publish(node, b'{ "room":"chat:1" }')
    assert (answer.status, answer.json()) == (202, {"published": 1})
    assert node.published == [b'{ "room":"chat:1" }']


async def test_a_list_of_events_is_published_in_order() -> None:
    node = Recorded()
    answer = await publish(node, b'[{"n":1},{"n":2},{"n":3}]')
    assert answer.json() == {"published": 3}
    assert node.published == [b'{"n":1}', b'{"n":2}', b'{"n":3}']


@pytest.mark.parametrize("body", [b"", b"nope", b"[]", b"3", b'"x"', b"[1]", b'[{"n":1},2]', b"\xff", b"[" * 100_000])
async def test_what_is_no_event_is_refused_and_nothing_published(body: bytes) -> None:
    node = Recorded()
    assert (await publish(node, body)).status == 400
    assert node.published == []


async def test_an_event_too_deep_to_be_written_again_is_refused() -> None:
    node = Recorded()
    assert (await publish(node, b'[{"a":' + b"[" * 900 + b"]" * 900 + b"}]")).status == 400


async def test_a_body_over_the_bound_is_refused_by_what_it_announces_and_by_what_it_is() -> None:
    node = Recorded()
    announced = {"Content-Length": str(BODY_BYTES_MAX + 1)}
    assert (await publish(node, b"{}", **announced)).status == 413
    assert (await publish(node, b"{}", **{"Content-Length": "9" * 5000})).status == 413
    half = b" " * (BODY_BYTES_MAX // 2 + 1)
    key = {"Authorization": f"Bearer {KEY}"}
    assert (await ask(node.app(), "POST", "/api/publish", headers=key, chunks=(half, half))).status == 413


async def test_too_many_events_are_refused() -> None:
    node = Recorded()
    assert (await publish(node, orjson.dumps([{}] * (EVENTS_MAX + 1)))).status == 413
    assert (await publish(node, orjson.dumps([{}] * EVENTS_MAX))).status == 202


async def test_a_bus_that_fails_in_the_middle_is_told_with_how_far_it_came() -> None:
    node = Recorded()
    node.room = 2
    answer = await publish(node, b'[{"n":1},{"n":2},{"n":3}]')
    assert answer.status == 503
    assert answer.json()["published"] == 2


async def test_a_body_that_never_comes_is_given_up() -> None:
    node = Recorded()
    statuses: list[int] = []

    async def receive() -> Message:
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

    async def send(message: Message) -> None:
        statuses.append(message.get("status", 0))

    headers = [(b"authorization", f"Bearer {KEY}".encode())]
    scope = {"type": "http", "method": "POST", "path": "/api/publish", "headers": headers, "query_string": b""}
    await node.app(body_s=0.01)({**scope, "root_path": "", "scheme": "http", "server": None}, receive, send)
    assert statuses[0] == 408


async def test_a_client_that_leaves_in_the_middle_of_a_body_is_no_error_of_ours() -> None:
    node = Recorded()

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(_message: Message) -> None: ...

    headers = [(b"authorization", f"Bearer {KEY}".encode())]
    scope = {"type": "http", "method": "POST", "path": "/api/publish", "headers": headers, "query_string": b""}
    await node.app()({**scope, "root_path": "", "scheme": "http", "server": None}, receive, send)
    assert node.published == []


async def test_an_error_of_ours_tells_no_details() -> None:
    node = Recorded()

    async def broken(_event: bytes) -> None:
        raise RuntimeError("s3cret")

    node.publish = broken  # type: ignore[method-assign]
    answer = Answer()

    async def send(message: Message) -> None:
        answer.status = message.get("status", answer.status)
        answer.body += message.get("body", b"")

    with pytest.raises(RuntimeError):  # the server logs it
        waiting = [{"type": "http.request", "body": b"{}", "more_body": False}]

        async def receive() -> Message:
            return waiting.pop(0)

        headers = [(b"authorization", f"Bearer {KEY}".encode())]
        scope = {"type": "http", "method": "POST", "path": "/api/publish", "headers": headers, "query_string": b""}
        await node.app()({**scope, "root_path": "", "scheme": "http", "server": None}, receive, send)
    assert answer.status == 500
    assert b"s3cret" not in answer.body


async def test_metrics_have_their_own_app() -> None:
    app = metrics_app(lambda accept: (b"up 1\n", f"text/plain; asked={accept}"))
    answer = await ask(app, "GET", "/metrics", headers={"Accept": "text/plain"})
    assert (answer.status, answer.body) == (200, b"up 1\n")
    assert answer.headers["content-type"] == "text/plain; asked=text/plain"
    assert (await ask(app, "GET", "/health")).body == b"OK"
    assert (await ask(app, "GET", "/stats")).status == 404


# --- server -----------------------------------------------------------------------------------------------------------


async def request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    writer.write(b"GET /stats HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = await reader.read()  # until the server ends the connection
    writer.close()
    await writer.wait_closed()
    return answer


async def test_the_app_is_served_on_an_abstract_socket_one_request_a_connection() -> None:
    name = abstract_name()
    server = asyncio.create_task(serve_http(Recorded().app(), bind_abstract(name)))
    for _ in range(2):
        answer = await request(*await asyncio.open_unix_connection(f"\0{name}"))
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"connection: close\r\n" in answer.lower()
        assert b"server:" not in answer.lower()
    server.cancel()
    with pytest.raises(asyncio.CancelledError):
        await server
    bind_abstract(name).close()  # the name is free again


def test_a_port_in_use_is_told_with_the_cure() -> None:
    with bind_tcp("127.0.0.1", 0, "metrics.port") as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartError, match=rf"port {port} is in use.*metrics\.port") as told:
            bind_tcp("127.0.0.1", port, "metrics.port")
        assert told.value.exit_code == RESOURCES


def test_an_address_that_is_not_ours_is_told_with_the_cure() -> None:
    with pytest.raises(StartError, match=r"203\.0\.113\.1:0.*metrics\.port"):
        bind_tcp("203.0.113.1", 0, "metrics.port")


# --- system -----------------------------------------------------------------------------------------------------------

STAT = "cpu  {user} 0 100 {idle} 0 0 0 0 0 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n"
MEMORY = "MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 875 kB\n"
NET = "Inter-| Receive\n face |bytes\n lo: 999 0 0 0 0 0 0 0 999 0\n eth0: {bytes} 0 0 0 0 0 0 0 {bytes} 0\n"


class Machine:
    def __init__(self) -> None:
        self.now = 100.0
        self.files = {
            "/proc/stat": STAT.format(user=0, idle=0),
            "/proc/meminfo": MEMORY,
            "/proc/net/dev": NET.format(bytes=0),
        }
        self.system = System(self.read, lambda: self.now)

    def read(self, name: str) -> str:
        if name not in self.files:
            raise FileNotFoundError(name)
        return self.files[name]


def test_load_is_over_the_time_since_the_last_question() -> None:
    machine = Machine()
    machine.now += 2
    machine.files["/proc/stat"] = STAT.format(user=1, idle=7)
    machine.files["/proc/net/dev"] = NET.format(bytes=125_000)
    assert machine.system.load() == {
        "cpu_used_percent": "12.50%",
        "ram_used_percent": "12.50%",
        "ram_used_mb": "0.12",
        "net_mbps": "1.00",
    }


def test_questions_within_a_second_share_an_answer() -> None:
    machine = Machine()
    machine.now += 2
    first = machine.system.load()
    machine.now += 0.5
    machine.files.clear()
    assert machine.system.load() == first


@pytest.mark.parametrize("text", [None, "", "cpu\n", "cpu a b c d e\nMemTotal:\neth0:\n", "\x00\xff"])
def test_a_machine_that_does_not_say_is_not_available(text: str | None) -> None:
    machine = Machine()
    machine.files = {} if text is None else dict.fromkeys(machine.files, text)
    machine.now += 2
    assert set(machine.system.load().values()) == {"N/A"}


# --- a profile's own pages --------------------------------------------------------------------------------------------

PAGES = {"/": ("text/plain; charset=utf-8", b"service\n"), "/health": ("application/json", b'{"status":"ok"}')}


def paged(**more: Any) -> ASGIApp:
    node = Recorded()
    parts: dict[str, Any] = {
        "stats": lambda: STATS,
        "why_not_ready": lambda: node.reason,
        "health": dict,
        "publish": node.publish,
        "publish_key": KEY,
        "body_s": 5.0,
    }
    return http_app(Node(**parts, pages=PAGES, **more), ("/ws",))


async def test_a_profiles_pages_are_all_there_is_beside_ready() -> None:
    answer = await ask(paged(), "GET", "/health")
    assert (answer.status, bytes(answer.body), answer.headers["content-type"]) == (200, *reversed(PAGES["/health"]))
    assert bytes((await ask(paged(), "GET", "/")).body) == b"service\n"
    assert (await ask(paged(), "GET", "/ready")).status == 200
    for path in ("/stats", "/api/publish", "/metrics", "/ws/other"):
        assert (await ask(paged(), "GET", path)).status == 404


async def test_metrics_may_be_on_the_same_port() -> None:
    answer = await ask(paged(render_metrics=lambda accept: (b"x 1\n", f"text/plain; {accept}")), "GET", "/metrics")
    assert (answer.status, bytes(answer.body)) == (200, b"x 1\n")
