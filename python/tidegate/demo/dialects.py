"""What the demo says on the wire, for each profile that it can show: who logs in how, and what a message looks like.

A message carries its number in its room and when it was sent, so that the tally can check it.
Rule: frames in, frames out; sockets are the crowd's.
"""

import re
import secrets
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import orjson

from tidegate.demo.view import Invitation, program
from tidegate.errors import unknown_name
from tidegate.tokens import Person, mint

# Nobody looks at a demo for longer than a day's work
TOKEN_LIFETIME_S = 12 * 3600.0


class Heard(NamedTuple):
    """A message of the demo, as a client got it."""

    room: str
    number: int
    sent_at: float  # time.perf_counter() of the sender
    text: str


class Dialect(Protocol):
    """One profile's words."""

    @property
    def profile(self) -> str: ...
    @property
    def port(self) -> int:
        """The contract's, so that what people try here works there."""

    @property
    def is_published(self) -> bool:
        """By a backend, over the bus; else the first member of a room sends it."""

    @property
    def members(self) -> Mapping[str, Sequence[str]]:
        """Who is where."""

    def settings(self) -> dict[str, Any]:
        """What this profile needs to run without anything else."""

    def url(self, name: str, port: int, jwt: Any) -> str: ...

    def greetings(self, name: str) -> Sequence[bytes | None]:
        """What a client sends before it listens, each answered once; None = it only awaits an answer."""

    def message(self, room: str, number: int, sent_at: float, text: str) -> bytes: ...

    def heard(self, frame: Any) -> Heard | None:
        """None for what is no message of the demo: others may talk here too."""

    def answer(self, frame: Any) -> bytes | None:
        """What a client must say to a frame that it got, if anything."""

    def invitation(self, of: Invitation) -> str: ...


class Silent:
    """Clients that only listen."""

    __slots__ = ()

    def answer(self, frame: Any) -> bytes | None:
        return None


@dataclass(frozen=True, slots=True)
class Attchat(Silent):
    """Rooms that clients join, and a backend that publishes to them."""

    profile: str = "attchat-gateway"
    port: int = 8086
    is_published: bool = True

    @property
    def members(self) -> Mapping[str, Sequence[str]]:
        """A room for all, and some that overlap."""
        return {
            "chat:lobby": ("An", "Binh", "Chi", "Dung", "Em", "Giang"),
            "chat:news": ("An", "Binh", "Chi"),
            "chat:support": ("Dung", "Em"),
            "chat:games": ("Chi", "Giang", "An"),
        }

    def settings(self) -> dict[str, Any]:
        return {
            "jwt": {"secret_key": secrets.token_hex(32)},
            "publish": {"key": secrets.token_hex(16)},
            "nats": {"url": "memory:demo"},
        }

    def url(self, name: str, port: int, jwt: Any) -> str:
        token = mint(Person(user_id=name, brand_id="demo", type="customer"), jwt, lifetime_s=TOKEN_LIFETIME_S)
        return f"ws://127.0.0.1:{port}/ws?token={token}"

    def greetings(self, name: str) -> Sequence[bytes | None]:
        rooms = (room for room, names in self.members.items() if name in names)
        return [None, *(orjson.dumps({"type": "join", "room": room}) for room in rooms)]

    def message(self, room: str, number: int, sent_at: float, text: str) -> bytes:
        payload = {"text": text, "number": number, "sent_at": sent_at}
        return orjson.dumps({"type": "message", "room": room, "user_id": "demo", "payload": payload})

    def heard(self, frame: Any) -> Heard | None:
        payload, room = frame.get("payload"), frame.get("room")
        if frame.get("type") != "message" or not isinstance(payload, dict):
            return None
        number, sent_at, text = payload.get("number"), payload.get("sent_at"), str(payload.get("text", ""))
        if not (isinstance(number, int) and isinstance(sent_at, float)):
            number, sent_at = 0, 0.0  # from outside: shown, not counted
        return Heard(str(room), number, sent_at, text)

    def invitation(self, of: Invitation) -> str:
        command, websocket = program(), of.url.replace("http", "ws", 1)
        token = self.url("you", 0, of.jwt).partition("token=")[2]
        return f"""tidegate demo: a gateway, its clients and a publisher, in one process on an embedded bus

  URL    {websocket}/ws
  token  {token}

Try from another terminal:
  {command} connect '{websocket}/ws?room_id=chat:lobby' --token {token}
  {command} publish chat:lobby 'hello from outside' --url {of.url} --key {of.publish_key}
  curl -s {of.url}/stats; curl -s {of.metrics_url}/metrics | grep ^gateway_

Ctrl-C ends it.
"""


@dataclass(frozen=True, slots=True)
class Gogate(Silent):
    """A chat whose members log in by a message and send to each other through the backend inside the process."""

    profile: str = "gogate"
    port: int = 8080
    is_published: bool = False

    @property
    def members(self) -> Mapping[str, Sequence[str]]:
        """The built-in backend has one chat, of all who ever logged in."""
        return {"lobby": ("An", "Binh", "Chi", "Dung", "Em", "Giang")}

    def settings(self) -> dict[str, Any]:
        # one person says everything here, faster than people type
        return {"backend": {"url": "memory:demo"}, "ws": {"message_rate": 0, "message_rate_per_user": 0}}

    def url(self, name: str, port: int, jwt: Any) -> str:
        return f"ws://127.0.0.1:{port}/ws"

    def greetings(self, name: str) -> Sequence[bytes | None]:
        return [orjson.dumps({"event": "auth", "data": {"token": name}})]

    def message(self, room: str, number: int, sent_at: float, text: str) -> bytes:
        return orjson.dumps({"event": "send_message", "data": {"chat_id": 1, "text": _stamped(text, number, sent_at)}})

    def heard(self, frame: Any) -> Heard | None:
        data = frame.get("data")
        text = data.get("text") if frame.get("event") == "new_message" and isinstance(data, dict) else None
        if not isinstance(text, str):
            return None
        return _unstamped("lobby", text)

    def invitation(self, of: Invitation) -> str:
        command, websocket = program(), of.url.replace("http", "ws", 1)
        return f"""tidegate demo: a chat whose backend is in the process too; any name is a token, chat 1 has everybody

  URL    {websocket}/ws

Try from another terminal, and type the two lines below it:
  {command} connect {websocket}/ws
  {{"event":"auth","data":{{"token":"you"}}}}
  {{"event":"send_message","data":{{"chat_id":1,"text":"hello"}}}}

  curl -s {of.url}/health; curl -s {of.url}/metrics | grep ^gogate_

Ctrl-C ends it.
"""


@dataclass(frozen=True, slots=True)
class ImGateway:
    """A group whose members send by the IM service inside the process; what is pushed to one of them is acked."""

    profile: str = "im-gateway"
    port: int = 8080
    is_published: bool = False

    @property
    def members(self) -> Mapping[str, Sequence[str]]:
        """The built-in user service has one group, of all who ever connected."""
        return {"group_1": tuple(f"user_{name}" for name in ("An", "Binh", "Chi", "Dung", "Em", "Giang"))}

    def settings(self) -> dict[str, Any]:
        inside = {"url": "memory:demo"}
        services = {f"{name}_url": inside["url"] for name in ("auth", "im", "user")}
        # one person says everything here, faster than people type
        ws = {"message_rate": 0, "message_rate_per_user": 0}
        return {"kafka": inside, "registry": inside, "redis": inside, "services": services, "ws": ws}

    def url(self, name: str, port: int, jwt: Any) -> str:
        return f"ws://127.0.0.1:{port}/ws?token={name}/{uuid.uuid4()}"

    def greetings(self, name: str) -> Sequence[bytes | None]:
        return [orjson.dumps({"type": "heartbeat"})]

    def message(self, room: str, number: int, sent_at: float, text: str) -> bytes:
        said = {"msg_id": str(uuid.uuid4()), "recipient": room, "content": _stamped(text, number, sent_at)}
        return orjson.dumps({"type": "send_msg", **said, "timestamp": int(time.time())})

    def heard(self, frame: Any) -> Heard | None:
        room, text = frame.get("group_id"), frame.get("content")
        if frame.get("type") != "message" or not (isinstance(room, str) and isinstance(text, str)):
            return None
        return _unstamped(room, text)

    def answer(self, frame: Any) -> bytes | None:
        """Somebody waits for the ack of what came to one person; of what came to a group, nobody."""
        if frame.get("type") != "message" or "group_id" in frame:
            return None
        return orjson.dumps({"type": "ack", "msg_id": frame.get("msg_id")})

    def invitation(self, of: Invitation) -> str:
        command, websocket = program(), of.url.replace("http", "ws", 1)
        token = self.url("user_you", 0, of.jwt).partition("token=")[2]
        pushed = '{"msg_id":"3","recipient_id":"user_you","sender_id":"user_An","content":"pushed","timestamp":1}'
        return f"""tidegate demo: a group of six; its services, registry, Kafka and Redis are in the process too

A token is user/device, and a device is a UUID v4. Everybody who connects is in group_1.

  URL    {websocket}/ws
  token  {token}

Try from another terminal, and type the two lines below it; a msg_id counts once:
  {command} connect {websocket}/ws --token {token}
  {{"type":"send_msg","msg_id":"1","recipient":"group_1","content":"hello"}}
  {{"type":"send_msg","msg_id":"2","recipient":"user_An","content":"hello, you alone"}}

  grpcurl -plaintext -d '{pushed}' {of.grpc} im_gateway_servicepb.GatewayService/PushMessage
  curl -s {of.url}/health; curl -s {of.metrics_url}/metrics | grep ^im_gateway_

Ctrl-C ends it.
"""


STAMPED = re.compile(r"(.*) #(\d{1,18}) @([0-9.e+-]{1,30})", re.DOTALL)


def _stamped(text: str, number: int, sent_at: float) -> str:
    return f"{text} #{number} @{sent_at!r}"


def _unstamped(room: str, text: str) -> Heard:
    """What a person types has no number."""
    stamped = STAMPED.fullmatch(text)
    return Heard(room, int(stamped[2]), float(stamped[3]), stamped[1]) if stamped else Heard(room, 0, 0, text)


DIALECTS: Mapping[str, Callable[[], Dialect]] = {
    "attchat-gateway": Attchat,
    "gogate": Gogate,
    "im-gateway": ImGateway,
}


def find(profile: str) -> Dialect:
    if profile not in DIALECTS:
        raise unknown_name("profile for a demo", profile, DIALECTS)
    return DIALECTS[profile]()
