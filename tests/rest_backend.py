"""A real REST backend for tests: a process of its own that answers as one of the two that exist, or as it is told.

Rule: as with every server of the tests, a free port, started and ended by its own id, and the same port after a crash.
"""

import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.servers import ToldServer, free_port


@dataclass(frozen=True, slots=True)
class Received:
    call: str  # auth | members | send | react | read | unknown
    verb: str
    path: str
    headers: Mapping[str, str]  # lower-case names
    body: str

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class RestBackend(ToldServer):
    """`start` after `kill` or `stop`: the same port, nothing remembered.

    Token `user-7` is user 7, `User 7` by name; a token that begins with "bad" is refused; any other is somebody too.
    Chat 1 has everybody who authenticated as a member; other chats are 404, unless `members` was told. The methods:

        tell(...)      changes how it behaves from now on, by these names; what is not named stays:
          shape          "original" (user_id, name; camel bodies) | "published" (id, first_name, ...; snake bodies)
          key            the X-Internal-API-Key that calls auth and members need; `KEY` until told otherwise
          members        {"1": [2, 3]}: the members of chats, by chat id as text
          member_form    "user_id" | "id" | "userId": the name of a member's id in the original's shape
          chat_id_in     calls whose answer says the chat: ["send"] until told otherwise; also "react", "read"
          refuse         {call: [status, body]}, as {"send": [403, {"error": "x"}]}
          lie            {call: "bad_json" | "wrong_types" | "not_an_object" | "empty" | "no_content" (204) |
                         "accepted" (202) | "server_error" (500) | "too_large"}
          slow           {call: seconds} before each answer
          hold           [call]: no answer until it is told otherwise
                         (in refuse, lie, slow and hold, "all" stands for every call)
        reset()        forgets all of that, what it received, and everybody
        requests(call) what it received, in order
        together()     the most requests that were in it at once; inside(): those that are now
        kill(), stop(), start(), freeze(), thaw()
    """

    name = "the backend"
    scheme = "http"
    KEY = "internal-key"

    def __init__(self) -> None:
        port, directory = free_port(), Path(tempfile.mkdtemp(prefix="tidegate-rest-"))
        super().__init__([sys.executable, "-m", "tests.rest_app", str(port)], port, directory)
        self.control_port = port

    def requests(self, call: str = "") -> list[Received]:
        received = [Received(**fields) for fields in self._control("/_seen")["requests"]]
        return [request for request in received if call in ("", request.call)]
