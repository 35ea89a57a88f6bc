"""Traffic of an im-gateway that goes on while a test breaks things, and the account of what came of it.

Everybody behaves as the contract's parties do: devices ack, and what was not confirmed is said again under its first
id. Rule: all that was confirmed must come, in the order in which it was said; what comes twice has the same id.
"""

import asyncio
import contextlib
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from itertools import count, cycle
from typing import Any, Self

import grpc
import orjson
import redis.asyncio as redis
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.gateways import stop
from tests.im import Device, Node, await_ready, device
from tests.im_backends import Pusher, Records, below
from tests.im_world import World

# Far above what a busy machine needs for the next round, or to heal; only a failing test waits so long
WAIT_S_MAX = 40
# Between two rounds of each kind: some hundred messages a test, which leaves the machine time for what is tested
PACE_S = 0.03
# A restart takes less than so many pauses; then who repeats gives up, and the test fails
TRIES_MAX = 200
PAUSE_S = 0.2
ANSWER_S = 5.0
PUSH_S = 3.0  # the original IM service's deadline


async def becomes(condition: Callable[[], object], within: float = WAIT_S_MAX) -> None:
    """Asked in a thread, for it may call another process that does not answer; refused connections count as no."""
    async with asyncio.timeout(within):
        while not await asyncio.to_thread(_holds, condition):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def _holds(condition: Callable[[], object]) -> bool:
    with contextlib.suppress(OSError):
        return bool(condition())
    return False


@contextlib.contextmanager
def nodes(world: World, number: int, **environ: str) -> Iterator[list[Node]]:
    """So many, started together, the one with the lowest name first."""
    begun = [world.starting(**environ) for _ in range(number)]
    try:
        for each in begun:
            await_ready(each)
        yield sorted(begun, key=lambda each: each.grpc_address)
    finally:
        for each in begun:
            stop(each)


def is_ready(node: Node) -> bool:
    return bool(node.get("/ready")[0] == 200)


def door(node: Node) -> str:
    """For somebody who was not here before."""
    return node.door("user_new", str(uuid.uuid4()))


async def is_registered(world: World, *places: tuple[Node, "Person"]) -> None:
    """Waits until etcd has just these devices, each at its node."""
    wanted = {f"{each.user}/{each.device.id}": node.grpc_address for node, each in places}
    found: dict[str, str] = {}
    try:
        async with asyncio.timeout(WAIT_S_MAX):
            while found != wanted:
                await asyncio.sleep(0.05)  # another process's state can only be asked
                values = await below(world.etcd.url, "/registry/users/")
                found = {key: value.partition("|")[0] for key, value in values.items()}
    except TimeoutError:
        raise AssertionError(f"etcd has {found}, not {wanted}") from None


async def stored(kept: "redis.Redis", user: str, *wanted: str) -> list[str]:
    """Ids of the receipts that Redis keeps for a user, once all of the wanted ones are there."""
    found: list[str] = []
    try:
        async with asyncio.timeout(WAIT_S_MAX):
            while not found or not set(wanted) <= set(found):
                await asyncio.sleep(0.05)  # another process's state can only be asked
                kept_now = await kept.lrange(f"offline_read_receipt:{user}", 0, -1)
                found = [orjson.loads(receipt)["msg_id"] for receipt in kept_now]
    except TimeoutError:
        raise AssertionError(f"Redis has {found} for {user}, not {wanted}") from None
    return found


# --- who is connected -------------------------------------------------------------------------------------------------


class Person:
    """A device that reads all that comes and acks each message, unless it is told to be `silent`."""

    def __init__(self, connected: Device) -> None:
        self.device, self.user = connected, connected.user
        self.got: dict[str, list[str]] = defaultdict(list)  # by group, "push" or the type of a frame: ids, as they came
        self.close_code: int | None = None
        self.is_silent = False
        self._answers: dict[str, asyncio.Future[Any]] = {}
        self.reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            while True:
                await self._take(orjson.loads(await self.device.socket.recv()))
        except ConnectionClosed as closed:
            self.close_code = closed.rcvd.code if closed.rcvd else 1006

    async def _take(self, frame: Any) -> None:
        kind, msg_id = frame["type"], frame.get("msg_id", "")
        if kind in ("ack", "error", "heartbeat"):
            waiting = self._answers.pop(msg_id, None)
            if waiting is not None and not waiting.done():
                waiting.set_result(frame)
        self.got[frame.get("group_id") or "push" if kind == "message" else kind].append(msg_id)
        if kind == "message" and not self.is_silent:
            await self.device.ack(msg_id)

    async def asks(self, msg_id: str, say: Coroutine[Any, Any, Any], within: float = ANSWER_S) -> Any:
        """The frame that answers, or TimeoutError. A heartbeat's answer has no id."""
        answer = self._answers[msg_id] = asyncio.get_running_loop().create_future()
        await say
        async with asyncio.timeout(within):
            return await answer

    async def send(self, recipient: str, msg_id: str, within: float = ANSWER_S) -> Any:
        return await self.asks(msg_id, self.device.send_msg(recipient, "hello", msg_id), within)

    async def is_alive(self) -> bool:
        return bool((await self.asks("", self.device.say("heartbeat")))["type"] == "heartbeat")

    async def has(self, kind: str, ids: Sequence[str]) -> None:
        """Waits until all of these have come."""
        try:
            await becomes(lambda: set(ids) <= set(self.got[kind]))
        except TimeoutError:
            missing = [one for one in ids if one not in self.got[kind]]
            raise AssertionError(f"{self.user} misses {len(missing)} of {len(ids)} {kind}: {missing[:9]}") from None


@contextlib.asynccontextmanager
async def person(node: Node, user: str, device_id: str = "") -> AsyncIterator[Person]:
    async with device(node, user, device_id) as connected:
        made = Person(connected)
        try:
            yield made
        finally:
            made.reading.cancel()


async def comes_in(node: Node) -> None:
    """Waits until somebody new is let in; until then they are told to come again."""
    async with asyncio.timeout(WAIT_S_MAX):
        while True:
            try:
                async with person(node, "user_new") as new:
                    assert await new.is_alive()
                    return
            except InvalidStatus as refusal:
                assert refusal.response.status_code == 503
                await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def people(*places: tuple[Node, str]) -> AsyncIterator[list[Person]]:
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(person(node, user)) for node, user in places]


# --- what goes on -----------------------------------------------------------------------------------------------------


class Traffic:
    """Four kinds of rounds, each on its own: "group" and "receipt" records in Kafka, "push" calls, and "send" by who is
    the first of the people. Entered, it goes on until the block ends; then `settled` says what came of it."""

    def __init__(
        self, world: World, on: Sequence[Node], persons: Sequence[Person], groups: Mapping[str, Sequence[str]]
    ) -> None:
        self.rounds: Counter[str] = Counter()
        self.tries: Counter[str] = Counter()  # by msg_id
        self._persons = persons
        self._groups = groups
        self._said: dict[tuple[str, str], list[str]] = defaultdict(list)  # (kind, user) -> ids
        self._records = Records(world.kafka.url, WAIT_S_MAX)
        self._pushers = [Pusher(node.grpc_address) for node in on]
        self._turns = cycle(self._pushers)
        self._is_over = False
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        kinds = {"group": self._group, "receipt": self._receipt, "push": self._push, "send": self._send}
        self._tasks = [asyncio.create_task(self._go_on(kind, say)) for kind, say in kinds.items()]
        await self.goes_on()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._is_over = True
        try:
            if kind is None:
                async with asyncio.timeout(WAIT_S_MAX):
                    await asyncio.gather(*self._tasks)
        finally:
            for task in self._tasks:
                task.cancel()
            for pusher in self._pushers:
                await pusher.close()

    async def _go_on(self, kind: str, say: Callable[[int], Coroutine[Any, Any, None]]) -> None:
        for number in count():
            if self._is_over:
                return
            await say(number)
            self.rounds[kind] += 1
            await asyncio.sleep(PACE_S)

    async def goes_on(self, *kinds: str, rounds: int = 5) -> None:
        """Waits until so many more rounds of each kind, or of these, were confirmed."""
        wanted = {kind: self.rounds[kind] + rounds for kind in kinds or ("group", "receipt", "push", "send")}
        try:
            async with asyncio.timeout(WAIT_S_MAX):
                while any(self.rounds[kind] < number for kind, number in wanted.items()):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"the traffic does not go on: {dict(self.rounds)}, wanted {wanted}") from None

    async def goes_on_for(self, seconds: float, *kinds: str) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            await self.goes_on(*kinds, rounds=1)

    async def _group(self, number: int) -> None:
        for group, members in self._groups.items():
            msg_id = f"{group}:{number}"
            await self._records.group_message(group, "user_0", str(number), msg_id=msg_id)
            self._owe(group, members, msg_id)

    async def _receipt(self, number: int) -> None:
        user, msg_id = self._persons[number % len(self._persons)].user, f"receipt:{number}"
        await self._records.read_receipt(user, "user_0", msg_id=msg_id)
        self._owe("read_receipt", {user}, msg_id)

    async def _push(self, number: int) -> None:
        user, msg_id = self._persons[number % len(self._persons)].user, f"push:{number}"
        await self._until(msg_id, lambda: self._is_pushed(user, msg_id))
        self._owe("push", {user}, msg_id)

    async def _is_pushed(self, user: str, msg_id: str) -> bool:
        """To all devices, as far as anybody knows."""
        try:
            answer = await next(self._turns).push(user, msg_id=msg_id, deadline=PUSH_S)
        except grpc.aio.AioRpcError:
            return False
        return answer.success and not answer.failed_devices and not answer.error_message

    async def _send(self, number: int) -> None:
        msg_id = f"send:{number}"
        await self._until(msg_id, lambda: self._is_sent(msg_id))

    async def _is_sent(self, msg_id: str) -> bool:
        with contextlib.suppress(TimeoutError):
            answer = await self._persons[0].send("user_0", msg_id)
            return bool(answer["type"] == "ack")
        return False

    async def _until(self, msg_id: str, is_confirmed: Callable[[], Coroutine[Any, Any, bool]]) -> None:
        for _ in range(TRIES_MAX):
            self.tries[msg_id] += 1
            if await is_confirmed():
                return
            await asyncio.sleep(PAUSE_S)
        raise AssertionError(f"{msg_id} was not confirmed")

    def _owe(self, kind: str, users: Sequence[str] | set[str], msg_id: str) -> None:
        for user in users:
            self._said[kind, user].append(msg_id)

    # --- what came of it ---------------------------------------------------------------------------------------------

    async def arrives(self) -> None:
        """Waits until everything that was confirmed by now has come."""
        for each in self._persons:
            for kind in (*self._groups, "read_receipt", "push"):
                await each.has(kind, list(self._said[kind, each.user]))

    async def settled(self, *may_repeat: str) -> None:
        """Everything came, in order; twice only what was said twice, or is of a kind that may repeat."""
        await self.arrives()
        for each in self._persons:
            assert each.close_code is None, f"{each.user} was disconnected with {each.close_code}"
            assert await each.is_alive()
            for kind in (*self._groups, "read_receipt", "push"):
                assert list(dict.fromkeys(each.got[kind])) == self._said[kind, each.user], f"{kind} of {each.user}"
                self._repeats(each, kind, may_repeat)
        print(f"rounds {dict(self.rounds)}, said again {sum(tries - 1 for tries in self.tries.values())}")

    def _repeats(self, each: Person, kind: str, may_repeat: Sequence[str]) -> None:
        twice = {one for one, times in Counter(each.got[kind]).items() if times > 1}
        if twice:
            print(f"{each.user} got {len(twice)} of {kind} more than once")
        if kind not in may_repeat:
            assert all(self.tries[one] > 1 for one in twice), (kind, each.user, sorted(twice)[:9])
