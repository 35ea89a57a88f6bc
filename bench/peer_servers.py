"""The rivals as servers of a benchmark: how each is found, started and published to, and what it is called.

Rule: who can't be measured has a reason, and the reason is shown in its place. Each runs with the settings that its own
documentation advises, without compression; they stand in the result file beside its version.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import rig
from tidegate.bench.rig import ANSWER_S_MAX, STOP_S_MAX
from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect

HERE = Path(__file__).resolve().parent / "peers"
BUILT = HERE / ".build"
BUILD_S_MAX = 300  # a Go compiler without a cache
HANDED_OVER_S_MAX = 300.0  # 3,750,000 deliveries of 10 us, eight times slower on a busy machine


class Peer(rig.Server):
    settings: str  # what differs from the library's defaults
    threads = 1
    cannot: Mapping[int, str] = {}  # row -> why there is no figure

    def __init__(self, secret: str, nats: str, command: Sequence[str], **how: Any) -> None:
        """`secret` is of the tokens; `nats` is where JetStream is, or nothing if it shall not read from there."""
        super().__init__(command, name=self.name, **how)

    @classmethod
    @abstractmethod
    def version(cls) -> str:
        """What would be measured; rig.RigError with the reason if nothing can be."""

    @abstractmethod
    def publish(self, room: str, count: int, size: int, batch: int) -> None:
        """`batch` messages at a time, between which its event loop may have its turn."""


class WiredPeer(Peer):
    """One that speaks the drivers' own wire: a token and a room in the URL, orders as text on /control."""

    def __init__(self, secret: str, nats: str = "") -> None:
        self.port = rig.free_port()
        arguments = ["--port", str(self.port), "--secret", secret]
        arguments += ["--nats", nats] if nats else []
        super().__init__(secret, nats, [*self.command(), *arguments], stdout=subprocess.PIPE)
        with contextlib.ExitStack() as unless_it_stands:
            unless_it_stands.callback(super().close)
            if nats:
                self._wait_for_its_word()
            wait_for_port(self, self.port)
            self._control = self._connected()
            unless_it_stands.pop_all()

    @classmethod
    def command(cls) -> list[str]:
        return [sys.executable, str(HERE / f"{cls.name}_peer.py")]

    @classmethod
    def version(cls) -> str:
        try:
            return metadata.version(cls.name)
        except metadata.PackageNotFoundError:
            raise rig.RigError("not installed; run make bench-peers") from None

    def url(self, room: str) -> str:
        return f"ws://127.0.0.1:{self.port}/ws?token={{token}}&room_id={room}"

    def publish(self, room: str, count: int, size: int, batch: int) -> None:
        self.ask(f"publish {room} {count} {size} {batch}")

    def _connected(self) -> ClientConnection:
        try:
            return connect(f"ws://127.0.0.1:{self.port}/control", compression=None, ping_interval=None)
        except (WebSocketException, OSError) as error:
            raise rig.RigError(f"{self.name} takes no driver: {error}") from error

    def ask(self, command: str) -> rig.Answer:
        try:
            self._control.send(command)
            answer: rig.Answer = json.loads(self._control.recv(HANDED_OVER_S_MAX))
        except (WebSocketException, TimeoutError) as error:
            self.check()
            raise rig.RigError(f"{self.name} does not answer on /control: {error}") from error
        return answer

    def close(self) -> None:
        self._control.socket.close()
        super().close()

    def _wait_for_its_word(self) -> None:
        """What is published before its consumer stands would be lost to it."""
        assert self.child.stdout is not None, "started with a pipe"
        if "forwarding" not in self.child.stdout.readline():
            self.child.wait(STOP_S_MAX)
            self.check()


class Socketify(WiredPeer):
    name = "socketify"
    settings = (
        "its topics and publish; outbox bound 1 MiB; the native loop alone or, with JetStream, polled from uvloop"
    )


class Picows(WiredPeer):
    name = "picows"
    settings = "uvloop, aiofastnet (its default), auto ping 30 s, read buffer 256 bytes; one send a member"


class Websockets(WiredPeer):
    name = "websockets"
    settings = "uvloop, the asyncio server, its own broadcast, compression off, ping 30 s"


class Go(WiredPeer):
    name = "go"
    settings = (
        "gorilla/websocket, nats.go, golang-jwt: two goroutines and a channel of 256 a connection, buffers of 4 KiB"
    )
    threads = os.cpu_count() or 1

    @classmethod
    def command(cls) -> list[str]:
        return [str(BUILT / "gateway")]

    @classmethod
    def version(cls) -> str:
        make("go")
        command = ["go", "version", "-m", *cls.command()]
        said = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S_MAX, check=False).stdout
        words = [line.split() for line in said.splitlines()]
        modules = [f"{word[1].removeprefix('github.com/')} {word[2]}" for word in words if word[0] == "dep"]
        named = ("gorilla/websocket", "nats-io/nats.go", "golang-jwt")
        return ", ".join([words[0][1] if words else "go", *(each for each in modules if each.startswith(named))])


def make(what: str) -> None:
    """Builds a peer that takes seconds; if it can't be, the reason is the last line that make's rule says."""
    command = ["make", "--silent", "-C", str(HERE), what]
    made = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_S_MAX, check=False)
    if made.returncode:
        said = [line for line in (made.stdout + made.stderr).splitlines() if not line.startswith("make")]
        raise rig.RigError(said[-1] if said else f"make -C bench/peers {what} fails")


def wait_for_port(server: rig.Server, port: int) -> None:
    deadline = time.monotonic() + rig.START_S_MAX
    while time.monotonic() < deadline:
        server.check()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.02)  # another process's readiness can only be asked
    raise rig.RigError(f"{server.name} took no connection for {rig.START_S_MAX:.0f} s:\n{server.said()}")
