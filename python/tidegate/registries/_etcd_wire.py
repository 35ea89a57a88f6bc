"""What the registry says to etcd and reads from it: keys, values and transactions. The only file that knows the protos.

    /registry/users/{user}/{device}     {node}|{connected_at}
    /registry/gateways/{node}           {node}|{started_at}

Each thing that may fail alone is a transaction inside the transaction that carries the batch, so one that may not be
done keeps nobody else's from being done. Rule: no I/O here. A key as this program keeps it is "user/device", a str.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

from aetcd import rpc

# The library has no types
Message: TypeAlias = Any
protos: Any = rpc

USERS = b"/registry/users/"
GATEWAYS = b"/registry/gateways/"
# Both prefixes and nothing between them
EVERYTHING = (GATEWAYS, b"/registry/users0")
# etcd takes 128 operations a transaction, counting for each branch of the nested ones what is above it; ours are three
# deep with two comparisons at the bottom
BATCH_MAX = 120
# Of one user. As many as a profile may allow; who has more is found on that many
DEVICES_MAX = 1_000


def value_of(node: str, since: int) -> bytes:
    return f"{node}|{since}".encode()


def node_of(value: bytes) -> str | None:
    """None for what no gateway wrote."""
    node, bar, _ = value.partition(b"|")
    try:
        return node.decode() if bar and node else None
    except UnicodeDecodeError:
        return None


def key_of(raw: bytes) -> str | None:
    """The key as this program keeps it, None for what is not a user's."""
    if not raw.startswith(USERS):
        return None
    try:
        return raw[len(USERS) :].decode()
    except UnicodeDecodeError:
        return None


def gateway_of(raw: bytes) -> str | None:
    if not raw.startswith(GATEWAYS):
        return None
    try:
        return raw[len(GATEWAYS) :].decode()
    except UnicodeDecodeError:
        return None


def batch(operations: Sequence[Message]) -> Message:
    return rpc.TxnRequest(success=operations)


def read_devices(user: str, most: int = DEVICES_MAX, keys_only: bool = False) -> Message:
    first, end = user_range(user)
    return rpc.RequestOp(
        request_range=rpc.RangeRequest(key=first, range_end=end, limit=most, keys_only=keys_only),
    )


def devices_in(response: Message, user: str) -> dict[str, str]:
    """Device -> node, from the answer to `read_devices`."""
    start = len(user_range(user)[0])
    found = {}
    for pair in response.response_range.kvs:
        device, node = pair.key[start:].decode(errors="replace"), node_of(pair.value)
        if node is not None and "/" not in device:
            found[device] = node
    return found


def others_in(response: Message, key: str) -> int:
    """How many keys but ours, from the same."""
    raw = USERS + key.encode()
    return sum(pair.key != raw for pair in response.response_range.kvs)


def enter(key: str, value: bytes, lease: int, revision: int) -> Message:
    """Puts the key if its user has none that is newer than what was read at `revision`."""
    first, end = user_range(key.partition("/")[0])
    unchanged = rpc.Compare(
        target=rpc.Compare.CREATE,
        result=rpc.Compare.LESS,
        key=first,
        range_end=end,
        create_revision=revision + 1,
    )
    return nested([unchanged], [put(key, value, lease)])


def keep(key: str, value: bytes, lease: int, node: str) -> Message:
    """Puts the key if it is not there, or there with a value of this node. Else reads what is."""
    raw = USERS + key.encode()
    absent = rpc.Compare(target=rpc.Compare.CREATE, result=rpc.Compare.EQUAL, key=raw, create_revision=0)
    again = put(key, value, lease)
    read = rpc.RequestOp(request_range=rpc.RangeRequest(key=raw))
    return nested([absent], [again], [nested(written_by(raw, node), [again], [read])])


def kept_by(response: Message) -> str | None:
    """Who has the key after `keep`: None = we do, else the node that took it, or "" for what no gateway wrote."""
    outer = response.response_txn
    inner = outer if outer.succeeded else outer.responses[0].response_txn
    if inner.succeeded:
        return None
    pairs = inner.responses[0].response_range.kvs
    return (node_of(pairs[0].value) or "") if pairs else ""


def leave(key: str, value: bytes) -> Message:
    """Deletes the key if it has that value."""
    raw = USERS + key.encode()
    ours = rpc.Compare(target=rpc.Compare.VALUE, result=rpc.Compare.EQUAL, key=raw, value=value)
    return nested([ours], [delete(raw)])


def leave_any(key: str, node: str) -> Message:
    """Deletes the key if it has any value of this node."""
    raw = USERS + key.encode()
    return nested(written_by(raw, node), [delete(raw)])


def put_gateway(node: str, since: int, lease: int) -> Message:
    key = GATEWAYS + node.encode()
    return rpc.RequestOp(request_put=rpc.PutRequest(key=key, value=value_of(node, since), lease=lease))


def read_gateways() -> Message:
    return rpc.RangeRequest(key=GATEWAYS, range_end=after(GATEWAYS), keys_only=True)


def watch_from(revision: int) -> Message:
    """Each event from that revision on. A large one comes in pieces: a lease takes a thousand keys with it."""
    first, end = EVERYTHING
    request = rpc.WatchCreateRequest(key=first, range_end=end, start_revision=revision, fragment=True)
    return rpc.WatchRequest(create_request=request)


def nested(compare: Sequence[Message], success: Sequence[Message], failure: Sequence[Message] = ()) -> Message:
    return rpc.RequestOp(request_txn=rpc.TxnRequest(compare=compare, success=success, failure=failure))


def put(key: str, value: bytes, lease: int) -> Message:
    return rpc.RequestOp(request_put=rpc.PutRequest(key=USERS + key.encode(), value=value, lease=lease))


def delete(raw: bytes) -> Message:
    return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=raw))


def written_by(raw: bytes, node: str) -> list[Message]:
    """etcd compares no prefixes; what starts with `node|` lies between that and `node}`. Not there is not between."""
    low, high = f"{node}|".encode(), f"{node}}}".encode()
    compare, target = rpc.Compare, rpc.Compare.VALUE
    return [
        compare(target=target, result=compare.GREATER, key=raw, value=low),
        compare(target=target, result=compare.LESS, key=raw, value=high),
    ]


def user_range(user: str) -> tuple[bytes, bytes]:
    """With the slash behind the name: without it, user 1 would be user 10 too."""
    prefix = USERS + user.encode() + b"/"
    return prefix, after(prefix)


def after(prefix: bytes) -> bytes:
    """The first key behind all that start so; none of ours ends in 0xff."""
    return prefix[:-1] + bytes([prefix[-1] + 1])
