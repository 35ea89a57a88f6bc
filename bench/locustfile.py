"""Locust users that are real WebSocket clients of the profile attchat-gateway: they join, type, ping and count.

    GATEWAY_JWT_SECRET_KEY=... .venv/bin/locust -f bench/locustfile.py --headless \
        --users 200 --spawn-rate 50 --run-time 20s --host ws://127.0.0.1:8086

The secret is the gateway's own, from the environment; each user mints a token with it. What Locust shows: `connect`
to the first message, `ping` to its pong, `join` to its answer, and `receive` for everything that other users caused.
Rule: for the behaviour of a few thousand people at once. A user here costs a greenlet and some 100 us a message, so the
figures of the README come from `bench/loadgen`, never from this.
"""

import itertools
import json
import os
import time
from typing import Any

import gevent
import websocket
from locust import User, between, events, task
from locust.exception import StopUser
from tidegate.bench.crowd_tokens import mac, tokens

ROOMS = 50  # a user shares each with one in fifty
CONNECT_S_MAX = 10
ANSWER_S_MAX = 10.0  # what is not answered by then counts as failed
numbers = itertools.count()


@events.test_start.add_listener
def need_the_secret(environment: Any, **_: Any) -> None:
    if not os.environ.get("GATEWAY_JWT_SECRET_KEY"):
        environment.runner.quit()
        raise SystemExit("set GATEWAY_JWT_SECRET_KEY to the gateway's secret: the users sign their tokens with it")


class Member(User):
    """One person with one connection."""

    wait_time = between(0.5, 2)

    def on_start(self) -> None:
        number = next(numbers)
        self.room = f"chat:{number % ROOMS}"
        self.waiting: dict[str, float] = {}  # type of the awaited answer -> when it was asked for
        token = next(tokens(mac(os.environ["GATEWAY_JWT_SECRET_KEY"]), 1, number))
        began = time.perf_counter()
        try:
            self.socket = websocket.create_connection(f"{self.host}/ws?token={token}", timeout=CONNECT_S_MAX)
            first = json.loads(self.socket.recv())
            if first.get("type") != "connected":
                raise ConnectionError(f"the first message was {first}")
        except (OSError, ValueError, websocket.WebSocketException) as error:
            self.report("connect", began, error=error)
            raise StopUser from error
        self.report("connect", began)
        self.socket.settimeout(None)
        self.reader = gevent.spawn(self.read)
        self.ask("join", "joined")

    def on_stop(self) -> None:
        if hasattr(self, "reader"):
            self.reader.kill()
            self.socket.close()

    @task(3)
    def ping(self) -> None:
        self.ask("ping", "pong")

    @task(5)
    def typing(self) -> None:
        self.send({"type": "typing", "room": self.room})

    @task(1)
    def join(self) -> None:
        self.ask("join", "joined")

    def ask(self, kind: str, answer: str) -> None:
        """Sends what has an answer; an earlier one that never came is a failure."""
        asked = self.waiting.pop(answer, None)
        if asked is not None and time.perf_counter() - asked > ANSWER_S_MAX:
            self.report(kind, asked, error=TimeoutError(f"no {answer} for {ANSWER_S_MAX:.0f} s"))
        self.waiting[answer] = time.perf_counter()
        self.send({"type": kind} if kind == "ping" else {"type": kind, "room": self.room})

    def send(self, message: dict[str, str]) -> None:
        try:
            self.socket.send(json.dumps(message))
        except (OSError, websocket.WebSocketException) as error:
            self.report("send", time.perf_counter(), error=error)
            raise StopUser from error

    def read(self) -> None:
        names = {"pong": "ping", "joined": "join"}
        while True:
            try:
                text = self.socket.recv()
                kind = json.loads(text).get("type", "")
            except (OSError, ValueError, AttributeError, websocket.WebSocketException) as error:
                self.report("receive", time.perf_counter(), error=error)
                return
            asked = self.waiting.pop(kind, None)
            self.report(names.get(kind, "receive"), asked or time.perf_counter(), len(text))

    def report(self, name: str, began: float, length: int = 0, error: BaseException | None = None) -> None:
        events.request.fire(
            request_type="WS",
            name=name,
            response_time=(time.perf_counter() - began) * 1000,
            response_length=length,
            exception=error,
            context={},
        )
