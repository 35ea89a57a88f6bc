"""The parts of the Kafka bus that speak to nobody: URLs, refusals and their cures, where a node begins to read."""

import subprocess
import sys
from collections.abc import Iterable, Mapping

import pytest
from confluent_kafka import KafkaError, Message
from tidegate.buses import open_bus, scheme_of
from tidegate.buses._kafka_cluster import Topic
from tidegate.buses._kafka_link import Place, TroubleError, parse_brokers
from tidegate.buses._kafka_reader import key_of
from tidegate.buses._kafka_survey import RENEW_S, Position, Survey
from tidegate.buses.kafka import SENDER, publish_failed, sender_of
from tidegate.errors import ConfigError

from tests.buses import Kafka, Settings

# --- URLs and words --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "brokers"),
    [
        ("kafka://broker", "broker:9092"),
        (" KAFKA://b-1.x:9093/ ", "b-1.x:9093"),
        ("kafka://a:1, b,kafka://c:3", "a:1,b:9092,c:3"),
        ("kafka://[::1]:9092", "[::1]:9092"),
    ],
)
def test_a_url_names_brokers(url: str, brokers: str) -> None:
    assert parse_brokers(url) == brokers
    assert scheme_of(url.strip()) == "kafka"


@pytest.mark.parametrize(
    "url",
    ["kafka://", "kafka:", "kafka://,", "kafka://h:x", "kafka://h:1/topic", "kafka://h?a=b", "kafka://h h", "nats://h"],
)
def test_a_url_that_cannot_be_is_refused_with_the_way_to_write_it(url: str) -> None:
    with pytest.raises(ConfigError, match="Write kafka://host:9092"):
        parse_brokers(url)


@pytest.mark.parametrize("url", ["kafka://u:hunter2@h", "kafka://h,u:hun@ter2@h", "kafka://h?password=hunter2"])
def test_no_password_shows_when_a_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError) as refused:
        open_bus(url, Settings(), node_id="one")
    assert "hun" not in str(refused.value) + repr(refused.value)


def test_without_the_package_the_cure_is_named() -> None:
    program = (
        "import sys; sys.modules['confluent_kafka'] = None\n"
        "from tidegate.buses import open_bus\n"
        "from tidegate.errors import ConfigError\n"
        "try: open_bus('kafka://h', None, node_id='one')\n"
        "except ConfigError as error: print(error.cure)\n"
        "open_bus('memory:', None, node_id='one')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "Install it with: pip install 'tidegate[kafka]'"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (KafkaError._MSG_TIMED_OUT, "may be kept or not"),
        (KafkaError._UNKNOWN_TOPIC, "auto.create.topics.enable"),
        (KafkaError._QUEUE_FULL, "Publish more slowly"),
        (KafkaError.MSG_SIZE_TOO_LARGE, "did not take the message"),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, "by an ACL"),
    ],
)
def test_what_publishing_meets_is_told_with_a_cure(code: int, words: str) -> None:
    assert words in str(publish_failed("chat", TroubleError.of(KafkaError(code))))


def test_keys_and_senders_are_text_whatever_they_hold() -> None:
    assert key_of(Message(key=b"group \xff")) == "group \ufffd"
    assert key_of(Message()) == ""
    assert sender_of(Message(headers=[("x", b"1"), (SENDER, b"node#1")])) == "node#1"
    assert sender_of(Message(headers=[(SENDER, None)])) == sender_of(Message()) == ""


# --- where a node begins ---------------------------------------------------------------------------------------------


class Cluster:
    """What a survey asks, answered from memory."""

    def __init__(self, **ends: list[tuple[int, int]]) -> None:
        self.bounds_of = {Place(name, number): at for name, parts in ends.items() for number, at in enumerate(parts)}
        self.offsets: dict[Place, int] = {}
        self.refused: set[str] = set()

    async def topics(self, names: Iterable[str]) -> dict[str, Topic]:
        found: dict[str, Topic] = {}
        for name in names:
            places = [place for place in self.bounds_of if place.topic == name]
            found[name] = TroubleError("no") if name in self.refused else places or None
        return found

    async def stored(self, places: Iterable[Place]) -> dict[Place, int]:
        return {place: self.offsets[place] for place in places if place in self.offsets}

    async def store(self, offsets: Mapping[Place, int]) -> set[Place]:
        self.offsets |= offsets
        return set(offsets)

    async def bounds(self, places: Iterable[Place]) -> dict[Place, tuple[int, int]]:
        return {place: self.bounds_of[place] for place in places}


A0, A1 = Place("a", 0), Place("a", 1)


async def begins(survey: Survey, cluster: Cluster) -> dict[Place, int]:
    """Looks, and says from where the reader is told to read."""
    await survey.look(cluster)  # type: ignore[arg-type]  # it is asked no more than that
    return {place: position.next for place, position in survey.take_changes().items()}


async def test_a_new_node_begins_at_the_end_and_keeps_that_before_it_reads() -> None:
    cluster, survey = Cluster(a=[(0, 7), (3, 3)]), Survey(["a", "b"], keeps=True)
    assert survey.lag_by_topic() == {"a": 0, "b": 0}
    assert not survey.is_live()
    assert await begins(survey, cluster) == {A0: 7, A1: 3}
    assert cluster.offsets == {A0: 7, A1: 3}
    assert survey.is_live()
    assert await begins(survey, cluster) == {}


async def test_what_appears_later_is_read_from_its_beginning() -> None:
    cluster, survey = Cluster(a=[(0, 7)]), Survey(["a", "b"], keeps=True)
    await begins(survey, cluster)
    cluster.bounds_of |= {A1: (2, 9), Place("b", 0): (0, 5)}
    assert await begins(survey, cluster) == {A1: 2, Place("b", 0): 0}
    assert survey.lag_by_topic() == {"a": 7, "b": 5}


async def test_a_node_that_was_here_goes_on_and_reads_partitions_made_meanwhile_from_their_beginning() -> None:
    cluster = Cluster(a=[(0, 7), (0, 4)])
    cluster.offsets = {A0: 5}
    assert await begins(Survey(["a"], keeps=True), cluster) == {A0: 5, A1: 0}


async def test_an_offset_outside_the_topic_is_moved_inside_and_what_is_gone_is_counted() -> None:
    cluster, survey = Cluster(a=[(10, 20), (0, 4)]), Survey(["a"], keeps=True)
    cluster.offsets = {A0: 5, A1: 6}
    assert await begins(survey, cluster) == {A0: 10, A1: 4}
    assert survey.lost == {"a": 5}


async def test_a_lost_position_is_looked_for_again_and_a_topic_whose_offsets_are_gone_is_another_one() -> None:
    cluster, survey = Cluster(a=[(0, 50)]), Survey(["a"], keeps=True)
    await begins(survey, cluster)
    survey.astray.add(A0)
    assert not survey.is_live()
    cluster.bounds_of[A0] = (60, 90)
    assert await begins(survey, cluster) == {A0: 60}
    assert survey.lost == {"a": 10}
    assert survey.is_live()
    survey.astray.add(A0)
    cluster.bounds_of[A0], cluster.offsets = (0, 8), {}
    assert await begins(survey, cluster) == {A0: 0}


@pytest.mark.parametrize("other", [True, False], ids=["another one", "the same"])
async def test_a_topic_that_goes_does_not_hold_the_node_up_and_may_come_back_as_another(other: bool) -> None:
    cluster, survey = Cluster(a=[(0, 50)]), Survey(["a"], keeps=True)
    await begins(survey, cluster)
    cluster.bounds_of = {}
    assert await begins(survey, cluster) == {}
    assert survey.is_live()
    cluster.bounds_of[A0] = (0, 80)
    if other:
        cluster.offsets = {}
    assert await begins(survey, cluster) == {A0: 0 if other else 50}
    assert survey.is_live()


async def test_a_topic_that_is_refused_does_not_hold_up_the_others(caplog: pytest.LogCaptureFixture) -> None:
    cluster, survey = Cluster(a=[(0, 1)], b=[(0, 1)]), Survey(["a", "b"], keeps=True)
    cluster.refused = {"a"}
    for _ in range(3):
        await begins(survey, cluster)
    assert survey.positions.keys() == {Place("b", 0)}
    assert not survey.is_live()
    assert caplog.text.count("Kafka topic a: no") == 1, "said once for each reason"
    cluster.refused = set()
    assert await begins(survey, cluster) == {A0: 1}
    assert survey.is_live()


async def test_the_next_run_goes_on_where_this_one_was_even_where_that_was_not_committed() -> None:
    cluster, survey = Cluster(a=[(0, 7)]), Survey(["a"], keeps=True)
    await begins(survey, cluster)
    cluster.bounds_of[A0] = (0, 20)
    survey.positions[A0].next = 15
    survey.rest()
    assert not survey.is_live()
    assert await begins(survey, cluster) == {A0: 15}


async def test_offsets_are_stored_when_they_moved_and_before_kafka_forgets_them() -> None:
    cluster, survey = Cluster(a=[(0, 7), (0, 7)]), Survey(["a"], keeps=True)
    await begins(survey, cluster)
    assert survey.unstored() == {}
    survey.positions[A0].next = 8
    survey.positions[A1].stored_at -= RENEW_S + 1
    assert survey.unstored().keys() == {A0, A1}
    await survey.store(cluster, survey.unstored())  # type: ignore[arg-type]  # as above
    assert survey.unstored() == {}
    assert cluster.offsets == {A0: 8, A1: 7}


async def test_an_offset_is_stored_only_when_all_before_it_was_served() -> None:
    cluster, survey = Cluster(a=[(0, 7)]), Survey(["a"], keeps=True)
    await begins(survey, cluster)
    served: set[str] = set()
    for reached, name in ((9, "slow"), (12, "later"), (20, "")):
        survey.positions[A0].reach(reached, (lambda name=name: name in served) if name else None)
    for names, stored in (("", 7), ("later", 7), ("slow", 20)):
        served.add(names)
        await survey.store(cluster, survey.unstored())  # type: ignore[arg-type]  # as above
        assert cluster.offsets == {A0: stored}
    assert survey.unstored() == {}


def test_what_was_served_is_forgotten_without_a_commit() -> None:
    position = Position(0, 0)
    for reached in range(1, 1000):
        position.reach(reached, lambda: True)
    assert (len(position.unserved), position.settle()) == (1, 999)


async def test_what_was_not_served_in_one_run_holds_back_the_offsets_of_the_next() -> None:
    cluster, survey = Cluster(a=[(0, 7)]), Survey(["a"], keeps=True)
    await begins(survey, cluster)
    served: list[int] = []
    cluster.bounds_of[A0] = (0, 20)
    survey.positions[A0].reach(9, lambda: bool(served))
    survey.rest()
    assert await begins(survey, cluster) == {A0: 9}, "nothing is read twice by the process that still has it"
    survey.positions[A0].reach(15, None)
    for stored in (7, 15):
        await survey.store(cluster, survey.unstored())  # type: ignore[arg-type]  # as above
        assert cluster.offsets == {A0: stored}
        served.append(1)


async def test_a_broadcast_topic_is_read_from_its_end_and_nothing_is_stored() -> None:
    cluster, survey = Cluster(a=[(0, 7)]), Survey(["a"], keeps=False)
    assert await begins(survey, cluster) == {A0: 7}
    assert cluster.offsets == {}


def test_a_bus_that_does_not_run_has_its_figures() -> None:
    bus = open_bus("kafka://h", Settings(kafka=Kafka(topics=["a", "b"])), node_id="one")
    assert not bus.is_ready()
    assert bus.lag_by_stream() == bus.lost_by_stream() == {"a": 0, "b": 0}  # type: ignore[attr-defined]
