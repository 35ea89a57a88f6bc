"""The doctor's verdicts on machines that were made up, and its readings of the one it runs on."""

import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tidegate.config import Settings
from tidegate.doctor import Check, Readings, judge, read_machine
from tidegate.doctor.probes import Peer, read_peers
from tidegate.profiles import find

MIB = 1 << 20
GOOD = Readings(
    cores=4,
    descriptors=20_000,
    private_tables=True,
    files=2_000_000,
    backlog=4096,
    port_range=(32_768, 60_999),
    conntrack=(10, 262_144),
    memory=8 << 30,
    year=2026,
    clock_synchronised=True,
    peers=(Peer("bus", "nats"),),
)


def settings(**sections: dict[str, Any]) -> Settings:
    jwt = {"secret_key": "0123456789abcdef0123456789abcdef"} | sections.pop("jwt", {})
    return Settings.model_validate({"jwt": jwt, **sections})


def verdict(name: str, machine: Readings, chosen: Settings | None = None) -> Check:
    return next(check for check in judge(machine, chosen or settings(), load_test=True) if check.name == name)


def test_a_good_machine_passes_every_check() -> None:
    assert {check.verdict for check in judge(GOOD, settings(), load_test=True)} == {"ok"}


def test_the_port_range_matters_only_to_who_generates_load() -> None:
    narrow = replace(GOOD, port_range=(60_000, 60_100))
    assert "ip_local_port_range" not in {check.name for check in judge(narrow, settings())}
    assert verdict("ip_local_port_range", narrow).verdict == "warn"


def test_a_million_connections_need_shards_with_tables_of_their_own() -> None:
    million = settings(ws={"max_connections": 1_000_000})
    check = verdict("descriptors", replace(GOOD, memory=64 << 30), million)
    assert (check.verdict, "51 shards" in check.needed) == ("ok", True)
    check = verdict("descriptors", replace(GOOD, private_tables=False), million)
    assert (check.verdict, "Linux 5.9" in check.cure) == ("fail", True)


@pytest.mark.parametrize(("descriptors", "expected"), [(1024, "warn"), (300, "fail"), (64, "fail"), (1 << 20, "ok")])
def test_few_descriptors_mean_many_threads_or_none_at_all(descriptors: int, expected: str) -> None:
    chosen = settings(ws={"max_connections": 500_000})
    assert verdict("descriptors", replace(GOOD, descriptors=descriptors), chosen).verdict == expected


@pytest.mark.parametrize(
    ("name", "machine", "expected"),
    [
        ("fs.file-max", replace(GOOD, files=5_000), "fail"),
        ("fs.file-max", replace(GOOD, files=None), "ok"),
        ("net.core.somaxconn", replace(GOOD, backlog=128), "warn"),
        ("nf_conntrack_max", replace(GOOD, conntrack=(0, 8_000)), "fail"),
        ("nf_conntrack_max", replace(GOOD, conntrack=(250_000, 260_000)), "fail"),
        ("nf_conntrack_max", replace(GOOD, conntrack=None), "ok"),
        ("memory", replace(GOOD, memory=100 * MIB), "fail"),
        ("memory", replace(GOOD, memory=300 * MIB), "warn"),
        ("memory", replace(GOOD, memory=None), "warn"),
        ("clock", replace(GOOD, year=1970), "fail"),
        ("clock", replace(GOOD, clock_synchronised=False), "warn"),
        ("clock", replace(GOOD, clock_synchronised=None), "ok"),
        ("main port", replace(GOOD, main_port_fault="address already in use"), "fail"),
        ("metrics port", replace(GOOD, metrics_port_fault="permission denied"), "fail"),
        ("gRPC port", replace(GOOD, grpc_port_fault="address already in use"), "fail"),
        ("gRPC port", replace(GOOD, grpc_port_fault=""), "ok"),
        ("gRPC port", GOOD, "ok"),
        ("bus", replace(GOOD, peers=(Peer("bus", "nats", "nobody listens there"),)), "fail"),
        ("bus", GOOD, "ok"),
        ("backend", replace(GOOD, peers=(Peer("backend", "http", "nobody answers there"),)), "fail"),
        ("im", replace(GOOD, peers=(Peer("im", "grpc", "nobody answers there"),)), "fail"),
        ("registry", replace(GOOD, peers=(Peer("registry", "etcd"),)), "ok"),
    ],
)
def test_what_is_wrong_gets_its_verdict_and_a_cure(name: str, machine: Readings, expected: str) -> None:
    check = verdict(name, machine)
    assert check.verdict == expected
    assert bool(check.cure) == (expected != "ok")


def test_too_little_memory_says_how_many_connections_fit() -> None:
    check = verdict("memory", replace(GOOD, memory=1 << 30), settings(ws={"max_connections": 1_000_000}))
    fits = int(check.cure.split("max_connections to ")[1].split()[0].replace(",", ""))
    assert verdict("memory", replace(GOOD, memory=1 << 30), settings(ws={"max_connections": fits})).verdict == "warn"


def test_metrics_that_are_switched_off_need_no_port() -> None:
    busy = replace(GOOD, metrics_port_fault="address already in use")
    assert verdict("metrics port", busy, settings(metrics={"enabled": False})).verdict == "ok"


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        (replace(GOOD, tls_fault="unusable: key values mismatch"), "fail"),
        (replace(GOOD, tls_days_left=-1), "fail"),
        (replace(GOOD, tls_days_left=3), "warn"),
        (replace(GOOD, tls_days_left=80), "ok"),
    ],
)
def test_a_certificate_must_fit_and_last(machine: Readings, expected: str) -> None:
    assert verdict("TLS", machine, settings(server={"tls_cert": "c.pem", "tls_key": "k.pem"})).verdict == expected


@pytest.mark.parametrize("secret", ["short", "a" * 64, "abababababababababababababababababab"])
def test_a_weak_secret_is_found_and_not_told(secret: str) -> None:
    check = verdict("token secret", GOOD, settings(jwt={"secret_key": secret}))
    assert check.verdict == "warn"
    assert secret not in f"{check.found} {check.needed} {check.cure}"


def test_reading_this_machine_never_fails() -> None:
    machine = read_machine(settings(server={"port": 0}, metrics={"port": 0}))
    assert machine.cores > 0
    assert machine.descriptors > 0
    assert machine.memory is None or machine.memory > MIB
    assert machine.main_port_fault == ""


def test_a_port_in_use_is_seen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = {"host": "127.0.0.1", "port": taken.getsockname()[1]}
        assert "in use" in read_machine(settings(server=server, metrics={"port": 0})).main_port_fault


def nobody(scheme: str, port: int) -> str:
    return f"{scheme}://127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("profile", "key", "name", "scheme"),
    [
        ("attchat-gateway", "nats.url", "bus", "nats"),
        ("gogate", "redis.url", "bus", "redis"),
        ("gogate", "backend.url", "backend", "http"),
        ("im-gateway", "kafka.url", "bus", "kafka"),
        ("im-gateway", "registry.url", "registry", "etcd"),
        ("im-gateway", "services.auth_url", "auth", "grpc"),
        ("im-gateway", "redis.url", "redis", "redis"),
    ],
)
def test_who_is_not_there_is_seen_within_the_time_limit(profile: str, key: str, name: str, scheme: str) -> None:
    with socket.socket() as reserved:  # bound, not listening: nobody answers, and nobody else gets the port
        reserved.bind(("127.0.0.1", 0))
        section, option = key.split(".")
        chosen = settings(**{section: {option: nobody(scheme, reserved.getsockname()[1])}})
        found = {peer.name: peer for peer in read_peers(chosen, find(profile))}
    assert found[name].scheme == scheme
    assert found[name].fault


def test_what_is_in_the_process_answers() -> None:
    chosen = settings(nats={"url": "memory:"})
    assert read_peers(chosen, find("attchat-gateway")) == (Peer("bus", "memory"),)
    assert Peer("backend", "memory") in read_peers(settings(backend={"url": "memory:"}), find("gogate"))


def test_tls_files_that_are_missing_or_no_pem_are_told_apart(tmp_path: Path) -> None:
    ports = {"port": 0}
    missing = settings(server={**ports, "tls_cert": str(tmp_path / "none.pem")}, metrics=ports)
    assert "no such file" in read_machine(missing).tls_fault
    (tmp_path / "junk.pem").write_text("junk")
    junk = settings(server={**ports, "tls_cert": str(tmp_path / "junk.pem")}, metrics=ports)
    assert "unusable" in read_machine(junk).tls_fault


def test_metrics_on_the_main_port_need_no_other() -> None:
    busy = replace(GOOD, metrics_port_fault="address already in use")
    assert verdict("metrics port", busy, settings(metrics={"shared": True})).verdict == "ok"
