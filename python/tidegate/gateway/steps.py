"""Steps that no client's event began: of a backend's request, or of a bus message that needs a look-up.

Rule: as for clients, what was decided is submitted in the turn of the loop in which steps begin to wait; what such
steps do names its connection, for none is "being served".
"""

from collections.abc import Generator, Mapping
from typing import Any, TypeAlias

from tidegate.gateway.actions import NOBODY, WAIT, Act, Actions
from tidegate.gateway.asking import Asking, Waits
from tidegate.gateway.handover import HandOver
from tidegate.profile import Action

Running: TypeAlias = Generator[Action, Any, Any]


class StepRunner:
    def __init__(self, actions: Actions, asking: Asking, handover: HandOver) -> None:
        self._actions = actions
        self._asking = asking
        self._handover = handover

    def begin(self, steps: Running) -> Waits:
        """As `advance`."""
        return advance(self._actions.unbound, NOBODY, steps)

    async def finish(self, steps: Running, reached: Waits) -> Any:
        """To the end, from where `begin` came to. Raises what the profile raises."""
        try:
            while True:
                answer, error = await self._asking.ask(reached)
                reached = advance(self._actions.unbound, NOBODY, steps, answer, error)
                self._handover.flush_soon()
        except StopIteration as end:
            return end.value
        finally:
            # of a caller who gave up: they end where they wait, now and not when memory is collected
            steps.close()
            self._handover.flush()

    async def run(self, steps: Running) -> Any:
        try:
            reached = self.begin(steps)
            self._handover.flush_soon()
            return await self.finish(steps, reached)
        except StopIteration as end:
            return end.value
        finally:
            self._handover.flush()


def advance(
    acts: Mapping[type, Act], conn: int, steps: Running, answer: Any = None, error: Exception | None = None
) -> Waits:
    """Carries out steps up to what they wait for.

    StopIteration, with what they returned, where they end. Raises what the profile raises.
    """
    send = steps.send
    action = send(answer) if error is None else steps.throw(error)
    while True:
        answer = acts[type(action)](conn, action)
        if answer is WAIT:
            return action  # type: ignore[return-value]  # only what waits is answered so
        action = send(answer)
