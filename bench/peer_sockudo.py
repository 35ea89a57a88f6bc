"""sockudo, which speaks the Pusher protocol: clients subscribe by messages, backends publish by signed requests.

Rule: it does the same work as far as its protocol goes. A client is in when all three of its subscriptions are
confirmed; an event is the same text, in the envelope that Pusher's clients expect. It reads no JWT, so its channels are
public, and it has no consumer of a bus.
"""

import contextlib
import hashlib
import hmac
import http.client
import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence

import rig
from peer_servers import BUILT, Peer, wait_for_port
from tidegate.bench.backend import Numbers
from tidegate.bench.rig import ANSWER_S_MAX, BRANDS, PUBLISH_S_MAX

APP, KEY = "bench", "bench-key"
PROGRAM = BUILT / "bin" / "sockudo"
WELCOMES = 4  # messages until a client is in: the connection and three subscriptions
UNLIMITED = "1000000"
EVENTS_A_REQUEST = 250
NO_BUS = "it reads no bus; its backends publish over HTTP"


class Sockudo(Peer):
    name = "sockudo"
    settings = (
        "Pusher protocol 7, memory adapter; metrics and rate limits off, limits of an app raised; public channels, as"
        f" it reads no JWT; published to by HTTP requests of up to {EVENTS_A_REQUEST} events"
    )
    threads = os.cpu_count() or 1
    cannot: Mapping[int, str] = {7: NO_BUS, 8: NO_BUS}

    def __init__(self, secret: str, nats: str = "") -> None:
        self.port, self._secret, self._numbers = rig.free_port(), secret[:32], Numbers()
        super().__init__(secret, nats, [str(PROGRAM)], environment=self._environment(), stdout=subprocess.DEVNULL)
        with contextlib.ExitStack() as unless_it_stands:
            unless_it_stands.callback(super().close)
            wait_for_port(self, self.port)
            unless_it_stands.pop_all()
        self._backend = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PUBLISH_S_MAX)

    @classmethod
    def version(cls) -> str:
        if not PROGRAM.exists():
            raise rig.RigError("not installed; run make -C bench/peers sockudo (half an hour)")
        command = [str(PROGRAM), "--version"]
        said = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S_MAX, check=False).stdout.split()
        return said[-1] if said else "unknown"

    def url(self, room: str) -> str:
        return f"ws://127.0.0.1:{self.port}/app/{KEY}?protocol=7&client=bench&version=1"

    def crowd_options(self, room: str) -> Sequence[str]:
        rooms = ("user:u{i}", f"brand:b{{i%{BRANDS}}}", room)
        lines = [f'{{"event":"pusher:subscribe","data":{{"channel":"{channel(each)}"}}}}' for each in rooms]
        return ["--welcome", str(WELCOMES), "--hello", "\n".join(lines)]

    def publish(self, room: str, count: int, size: int, batch: int) -> None:
        events = [text.decode() for text in self._numbers.events(room, count, size)]
        for start in range(0, count, EVENTS_A_REQUEST):
            part = events[start : start + EVENTS_A_REQUEST]
            self._post({"batch": [{"name": "message", "channel": channel(room), "data": text} for text in part]})

    def close(self) -> None:
        self._backend.close()
        super().close()

    def _post(self, content: object) -> None:
        path, body = f"/apps/{APP}/batch_events", json.dumps(content)
        digest = hashlib.md5(body.encode(), usedforsecurity=False).hexdigest()
        query = f"auth_key={KEY}&auth_timestamp={int(time.time())}&auth_version=1.0&body_md5={digest}"
        signature = hmac.new(self._secret.encode(), f"POST\n{path}\n{query}".encode(), hashlib.sha256).hexdigest()
        headers = {"Content-Type": "application/json"}
        self._backend.request("POST", f"{path}?{query}&auth_signature={signature}", body, headers)
        answer = self._backend.getresponse()
        said = answer.read()
        if answer.status != http.HTTPStatus.OK:
            raise rig.RigError(f"sockudo refused to publish: {answer.status} {said[:200]!r}")

    def _environment(self) -> dict[str, str]:
        app = {
            "ID": APP,
            "KEY": KEY,
            "SECRET": self._secret,
            "MAX_CONNECTIONS": UNLIMITED,
            "MAX_BACKEND_EVENTS_PER_SECOND": UNLIMITED,
            "MAX_CLIENT_EVENTS_PER_SECOND": UNLIMITED,
            "MAX_EVENT_BATCH_SIZE": str(EVENTS_A_REQUEST),
        }
        server = {"HOST": "127.0.0.1", "PORT": str(self.port), "METRICS_ENABLED": "false"}
        server |= {"RATE_LIMITER_ENABLED": "false", "RUST_LOG": "error"}
        return server | {f"SOCKUDO_DEFAULT_APP_{name}": value for name, value in app.items()}


def channel(room: str) -> str:
    """Pusher's names know no colon."""
    return room.replace(":", ".")
