"""Real services over gRPC for tests: a process of their own that answers as it is told.

Rule: as with every server of the tests, a free port, started and ended by its own id, and the same port after a crash.
"""

import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from tests.certificates import Certificate
from tests.servers import Server, free_port

CONTROL_S_MAX = 10


@dataclass(frozen=True, slots=True)
class Called:
    method: str  # without its service
    fields: Mapping[str, Any]
    metadata: Mapping[str, str]
    seconds: float | None  # that were left when it came
    peer: str  # the other end of the connection


class GrpcBackend(Server):
    """`start` after `kill` or `stop`: the same port, nothing remembered.

    It serves auth.v1.AuthService/ValidateToken (a token that begins with "bad" is not valid, another is the user's id),
    im.v1.IMService, user.v1.UserService/GetGroupMembers (as many as `limit`) and PushMessage. The methods:

        tell(...)     changes how it behaves from now on, by these names; what is not named stays ("all" = each method):
          status        {method: "NOT_FOUND"}: the status of each answer
          fail          {method: ["UNAVAILABLE", 2]}: the status of the next so many
          slow          {method: seconds} before each answer
          hold          [method]: no answer until it is told otherwise
          garbage       [method]: bytes that are no message
          unknown       [method]: as if it had none of that name
        reset()       forgets all of that, and what it received
        calls(method) what it received, in order
        together()    the most calls that were in it at once; inside(): those that are now
        cancelled()   calls whose caller went away
        kill(), stop(), start(), freeze(), thaw()
    """

    name = "the gRPC backend"
    scheme = "grpc"

    def __init__(self, certificate: Certificate | None = None) -> None:
        port, directory = free_port(), Path(tempfile.mkdtemp(prefix="tidegate-grpc-"))
        command = [sys.executable, "-m", "tests.grpc_app", str(port)]
        self.tls_port = free_port(but=port)
        if certificate:
            command += [str(self.tls_port), str(certificate.file), str(certificate.key_file)]
        super().__init__(command, port, directory)

    def tell(self, **behaviour: Any) -> None:
        self._control("Tell", behaviour)

    def reset(self) -> None:
        self.tell(reset=True)

    def calls(self, method: str = "") -> list[Called]:
        received = [Called(**fields) for fields in self._control("Seen")["calls"]]
        return [call for call in received if method in ("", call.method)]

    def together(self) -> int:
        return int(self._control("Seen")["together"])

    def inside(self) -> int:
        return int(self._control("Seen")["inside"])

    def cancelled(self) -> int:
        return int(self._control("Seen")["cancelled"])

    def _control(self, method: str, body: Mapping[str, Any] | None = None) -> Any:
        unbounded = [("grpc.max_receive_message_length", -1)]
        with grpc.insecure_channel(self.address, unbounded) as channel:
            said = json.dumps(body or {}).encode()
            return json.loads(channel.unary_unary(f"/tests.Control/{method}")(said, timeout=CONTROL_S_MAX))

    def _answers(self) -> bool:
        try:
            self._control("Seen")
        except grpc.RpcError:
            return False
        return True
