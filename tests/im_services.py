"""The three services that an im-gateway works with, for tests: a process each, which does what a test tells it.

Rule: as with every server of the tests, free ports, started and ended by their own id, and the same ports after a
crash. `kill` one of them and the other two go on.
"""

import concurrent.futures
import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from tests.servers import ToldServer, free_port


class ImService(ToldServer):
    """`role` is "auth", "im" or "user". `start` after `kill` or `stop`: the same ports, what it was told, nothing else.

    tell(...)       changes how it behaves from now on, by these names; what is not named stays. Of all three:
      slow            {method: seconds} before each answer
      hold            [method]: no answer until it is told otherwise
      status          {method: "UNAVAILABLE"}: this gRPC status instead of an answer
      refuse          {method: ["IM_ERROR_CODE_SENSITIVE_CONTENT", text]}: an answer with this error_code
      lie             {method: "garbage" | "empty" | "too_large" | "unknown_code" | "nobody" (auth: no user_id)
                       | "endless" (GetGroupMembers: always another page)}
      recording       False: only counts, for those who measure
                      (in slow, hold, status, refuse and lie, "all" stands for every method)
    auth: a token is `user_7/DEVICE`; one that begins with "bad" is refused
      secret          tokens are JWT, HS256, with user_id and device_id from now on
    im: numbers the messages of a conversation from 1; a msg_id that comes again gets the same answer
      mode            "record" (answers DELIVERED) | "push" (looks the recipient up in etcd, calls PushMessage at
                      each device's node; DELIVERED if one counted, else OFFLINE)
      etcd            "http://host:port,host:port", for "push"
      push            "one_by_one", each device after the one before it, as in the original | "together"
      brokers         "host:port": group messages are published there, to `topic` ("group_msg")
      group_shape     "contract" | "event": the record that the original IM service makes
    user: no group exists until it is told
      groups          {"group_1": ["user_1", "user_2"]}
      large           {"group_big": 100000}: its members are user_0 to user_99999
      page_max        members an answer has at most: 1000
      unknown_group   "error" (GROUP_NOT_FOUND) | "empty", as in the original
    reset()         forgets all of that, and what it received
    requests(m)     what it received, in order: {"method", "fields", "metadata", "deadline": seconds left or None}
    count(m)        how many; of all methods without one
    together()      the most requests that were in it at once; inside(): those that are now
    pushes()        im: what it pushed: {"msg_id", "device", "node", "status", "success", "delivered_count", ...}
    offline()       im: (recipient, msg_id) of what it would have stored for later
    kill(), stop(), start(), freeze(), thaw()
    """

    scheme = "grpc"

    def __init__(self, role: str) -> None:
        self.role, self.name = role, f"the {role} service"
        port, directory = free_port(), Path(tempfile.mkdtemp(prefix=f"tidegate-im-{role}-"))
        self.control_port = free_port(but=port)
        command = [sys.executable, "-m", "tests.im_app", role, str(port), str(self.control_port)]
        super().__init__([*command, str(directory / "told.json")], port, directory)

    def renew(self) -> None:
        """As new: it forgets, and comes back if a test killed or froze it."""
        if self.is_alive():
            self.thaw()
        else:
            self.kill()
            self.start()
        self.reset()

    def requests(self, method: str = "") -> list[dict[str, Any]]:
        received: list[dict[str, Any]] = self._control(f"/_requests?method={method}")
        return received

    def count(self, method: str = "") -> int:
        counts: dict[str, int] = self._control("/_seen")["counts"]
        return counts.get(method, 0) if method else sum(counts.values())

    def pushes(self) -> list[dict[str, Any]]:
        pushed: list[dict[str, Any]] = self._control("/_pushes")
        return pushed

    def offline(self) -> list[tuple[str, str]]:
        return [(recipient, msg_id) for recipient, msg_id in self._control("/_offline")]


class ImServices:
    """All three. Start them once, `renew` them for each test."""

    def __init__(self) -> None:
        self.auth, self.im, self.user = ImService("auth"), ImService("im"), ImService("user")

    @property
    def all(self) -> tuple[ImService, ...]:
        return self.auth, self.im, self.user

    @property
    def environ(self) -> dict[str, str]:
        """The original's variables."""
        addresses = {"AUTH": self.auth, "IM": self.im, "USER": self.user}
        return {f"{name}_SERVICE_ADDR": service.address for name, service in addresses.items()}

    def start(self) -> None:
        """At the same time: each takes most of a second to begin."""
        with concurrent.futures.ThreadPoolExecutor() as threads:
            for started in [threads.submit(service.start) for service in self.all]:
                started.result()

    def renew(self) -> None:
        for service in self.all:
            service.renew()

    def remove(self) -> None:
        for service in self.all:
            service.remove()

    @contextlib.contextmanager
    def running(self) -> Iterator[Self]:
        try:
            self.start()
            yield self
        finally:
            self.remove()
