"""Events and answers in any order: the newer revision counts, and what can't be known is settled later."""

from tidegate.registries._etcd_leases import Lease, Leases
from tidegate.registries._etcd_ledger import Doubt, Ledger
from tidegate.registries._etcd_link import Link
from tidegate.registries._etcd_url import Etcd
from tidegate.registries._held import Hold

KEY = "user_7/phone"


def ledger() -> tuple[Ledger, list[int], Leases]:
    """With a place on the lease 1, that revision 10 wrote, and a lease 2."""
    taken: list[int] = []
    leases = Leases(Link(Etcd(("127.0.0.1:1",))), 90)
    leases._alive = {1: Lease(111), 2: Lease(222)}
    made = Ledger("one", leases, lambda place: taken.append(place.conn))
    leases._alive[1].places = 1
    made.begin(KEY)
    made.confirm(KEY, Hold(conn=7, since=100, lease=1, revision=10))
    return made, taken, leases


def test_another_nodes_newer_write_takes_the_place_and_an_older_one_does_not() -> None:
    made, taken, leases = ledger()
    made.heard(KEY, "two", 9)
    made.heard(KEY, "one", 10)
    assert taken == []
    assert KEY in made.held
    made.heard(KEY, "two", 11)
    assert taken == [7]
    assert KEY not in made.held
    assert leases._alive[1].places == 0
    made.heard(KEY, "two", 12)
    assert taken == [7], "told once"


def test_a_write_of_others_that_is_heard_before_our_answer_counts_by_its_revision() -> None:
    for revision, expected in ((19, []), (21, [8])):
        made, taken, _ = ledger()
        made.forget(KEY, 7)
        made.begin(KEY)
        made.heard(KEY, "two", revision)
        made.confirm(KEY, Hold(conn=8, since=101, lease=2, revision=20))
        assert taken == expected


def test_a_deletion_that_is_heard_before_our_answer_puts_the_place_in_doubt() -> None:
    made, taken, _ = ledger()
    made.forget(KEY, 7)
    made.begin(KEY)
    made.heard(KEY, None, 21)
    made.confirm(KEY, Hold(conn=8, since=101, lease=2, revision=20))
    assert taken == []
    assert made.is_adrift(KEY)
    assert made.doubt == Doubt.LEASES
    assert made.wake.is_set()


def test_a_late_echo_of_what_we_did_before_changes_nothing() -> None:
    made, taken, _ = ledger()
    made.heard(KEY, None, 8)
    made.begin(KEY)
    made.heard(KEY, None, 12)
    made.confirm(KEY, Hold(conn=8, since=101, lease=2, revision=20))
    assert not made.is_adrift(KEY)
    assert taken == []


def test_the_second_connection_of_a_device_gives_the_firsts_room_back() -> None:
    made, _, leases = ledger()
    made.begin(KEY)
    made.confirm(KEY, Hold(conn=8, since=101, lease=2, revision=20))
    assert leases._alive[1].places == 0
    assert made.forget(KEY, 7) is None, "it is not its any more"
    assert made.forget(KEY, 8) is not None
    assert KEY not in made.held


def test_a_place_on_a_lost_lease_is_adrift() -> None:
    made, _, leases = ledger()
    assert not made.is_adrift(KEY)
    leases._lose([1])
    assert made.is_adrift(KEY)
    assert not made.is_adrift("nobody/here")


def test_what_was_given_up_is_unsettled_until_somebody_looks() -> None:
    made, _, _ = ledger()
    made.begin("a/b")
    made.give_up("a/b")
    assert list(made.unsettled) == ["a/b"]
    assert made.wake.is_set()
    made.heard("a/b", "two", 30)
    assert "a/b" not in made.held
