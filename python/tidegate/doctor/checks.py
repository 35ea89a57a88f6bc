"""Verdicts on a machine: each check is a pure function from readings and settings to one line of the table.

So the tests try machines that nobody owns. Rule: a check that is not satisfied says the cure, best as a command.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from tidegate.config import Settings
from tidegate.doctor.probes import PROBE_S, Peer
from tidegate.doctor.readings import Readings

Verdict: TypeAlias = Literal["ok", "warn", "fail"]

# Measured: an idle TCP socket costs about 4 KiB of kernel memory, a connection in three rooms under 0.5 KiB of ours
CONNECTION_BYTES = 4 * 1024 + 512
# Interpreter, engine and their libraries before the first client
PROCESS_BYTES = 128 * 1024 * 1024
# A shard's own descriptors: epoll, eventfd, listener, relays to the HTTP app and some air
SHARD_DESCRIPTORS = 64
# What the engine's settings allow
SHARDS_MAX = 1024
# Linux's default since 5.4; a storm of clients overflows anything shorter before a shard gets to accept
BACKLOG_MIN = 4096
# RFC 7518 section 3.2: a key as long as the hash
SECRET_BYTES_MIN = 32
# Of a random hex or base64 text of that length more than this many characters differ
SECRET_VARIETY_MIN = 8
# Certificates are usually renewed 30 days ahead; at 14 the renewal has failed for two weeks
CERTIFICATE_DAYS_MIN = 14
# A clock before this program was written is wrong, and so are all its verdicts on `exp`
YEAR_MIN = 2026


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the table."""

    name: str
    found: str
    needed: str
    verdict: Verdict
    cure: str = ""


def check_descriptors(machine: Readings, settings: Settings) -> Check:
    """A shard's table is private, so connections are bounded by shards times the limit, not by the limit."""
    connections = settings.ws.max_connections
    usable = machine.descriptors - SHARD_DESCRIPTORS
    found, cure = (
        f"{machine.descriptors:,} a table",
        "raise it: ulimit -Hn 1048576, or LimitNOFILE= in the systemd unit",
    )
    if usable <= 0:
        return Check("descriptors", found, f"more than {SHARD_DESCRIPTORS}", "fail", cure)
    shards = max(machine.cores, -(-connections // usable))
    needed = f"{connections:,} connections: {shards} shards of {usable:,}"
    if not machine.private_tables and usable < connections:
        return Check("descriptors", f"{found}, one table", needed, "fail", f"{cure}; or use Linux 5.9 or later")
    if shards > SHARDS_MAX:
        return Check("descriptors", found, needed, "fail", f"{cure}; {SHARDS_MAX} shards are the most")
    if shards > 16 * machine.cores:
        return Check("descriptors", found, needed, "warn", f"{shards} threads on {machine.cores} cores; {cure}")
    return Check("descriptors", found, needed, "ok")


def check_files(machine: Readings, settings: Settings) -> Check:
    needed = settings.ws.max_connections * 11 // 10
    cure = f"sudo sysctl -w fs.file-max={max(needed, 1_000_000)}"
    return _at_least("fs.file-max", machine.files, needed, cure)


def check_backlog(machine: Readings, settings: Settings) -> Check:
    cure = f"sudo sysctl -w net.core.somaxconn={BACKLOG_MIN}; until then a storm of clients waits for its second SYN"
    return _at_least("net.core.somaxconn", machine.backlog, BACKLOG_MIN, cure, otherwise="warn")


def check_conntrack(machine: Readings, settings: Settings) -> Check:
    if machine.conntrack is None:
        return Check("nf_conntrack_max", "not loaded", "nothing", "ok")
    now, most = machine.conntrack
    needed = settings.ws.max_connections * 12 // 10
    cure = f"sudo sysctl -w net.netfilter.nf_conntrack_max={needed + now}, or exempt the port with a NOTRACK rule"
    return _at_least("nf_conntrack_max", most - now, needed, cure, note=f" free of {most:,}")


def check_port_range(machine: Readings, settings: Settings) -> Check:
    """Only for who generates load: every connection from one address to one port takes one of these."""
    if machine.port_range is None:
        return Check("ip_local_port_range", "unknown", "nothing", "ok")
    low, high = machine.port_range
    cure = "sudo sysctl -w net.ipv4.ip_local_port_range='1024 65535'; beyond 64,000 use several source addresses"
    needed = min(settings.ws.max_connections, 60_000)
    return _at_least("ip_local_port_range", high - low + 1, needed, cure, otherwise="warn", note=f" ({low} to {high})")


def check_memory(machine: Readings, settings: Settings) -> Check:
    connections = settings.ws.max_connections
    needed = connections * CONNECTION_BYTES + PROCESS_BYTES
    peak = needed + settings.ws.outbox_total + settings.ws.backlog_bytes
    text = f"{_size(needed)} for {connections:,} connections, {_size(peak)} with full queues"
    if machine.memory is None:
        return Check("memory", "unknown", text, "warn", "read it yourself: free -m")
    found = f"{_size(machine.memory)} available"
    if machine.memory < needed:
        fits = max(0, machine.memory - PROCESS_BYTES) // CONNECTION_BYTES
        return Check("memory", found, text, "fail", f"add memory or set ws.max_connections to {fits:,} or less")
    if machine.memory < peak:
        return Check("memory", found, text, "warn", "add memory, or lower ws.outbox_total and ws.backlog_bytes")
    return Check("memory", found, text, "ok")


def check_clock(machine: Readings, settings: Settings) -> Check:
    needed = "synchronised, or tokens expire early or late"
    if machine.year < YEAR_MIN:
        return Check("clock", f"the year {machine.year}", needed, "fail", "set it: sudo timedatectl set-ntp true")
    if machine.clock_synchronised is None:
        return Check("clock", "right year; synchronisation unknown", needed, "ok")
    if not machine.clock_synchronised:
        return Check("clock", "right year, not synchronised", needed, "warn", "sudo timedatectl set-ntp true")
    return Check("clock", "synchronised", needed, "ok")


def check_port(machine: Readings, settings: Settings) -> Check:
    return _port("main port", settings.server.host, settings.server.port, machine.main_port_fault, "server.port")


def check_metrics_port(machine: Readings, settings: Settings) -> Check:
    if not settings.metrics.enabled:
        return Check("metrics port", "switched off", "nothing", "ok")
    if settings.metrics.shared:
        return Check("metrics port", "the main port", "nothing more", "ok")
    fault = machine.metrics_port_fault
    return _port("metrics port", settings.metrics.host, settings.metrics.port, fault, "metrics.port")


def check_grpc_port(machine: Readings, settings: Settings) -> Check:
    if machine.grpc_port_fault is None:
        return Check("gRPC port", "not served", "nothing", "ok")
    return _port("gRPC port", settings.grpc.host, settings.grpc.port, machine.grpc_port_fault, "grpc.port")


def check_tls(machine: Readings, settings: Settings) -> Check:
    needed = "a certificate, its key, not expired"
    if not settings.server.tls_cert:
        return Check("TLS", "switched off", "a TLS proxy in front, for tokens travel in URLs", "ok")
    if machine.tls_fault:
        return Check("TLS", machine.tls_fault, needed, "fail", "check server.tls_cert and server.tls_key")
    days = machine.tls_days_left
    if days is not None and days < CERTIFICATE_DAYS_MIN:
        cure = "renew the certificate, then: kill -HUP the gateway"
        return Check("TLS", f"{days} days left", needed, "fail" if days < 0 else "warn", cure)
    return Check("TLS", f"{days} days left" if days is not None else "readable", needed, "ok")


def check_secret(machine: Readings, settings: Settings) -> Check:
    """Says how strong, never what."""
    secret = settings.jwt.secret_key.get_secret_value()
    needed = f"{SECRET_BYTES_MIN} random bytes"
    if not secret:
        is_public = bool(settings.jwt.public_key or settings.jwt.public_key_file)
        return Check(
            "token secret", "a public key instead" if is_public else "none", "a key if tokens are asked for", "ok"
        )
    length, variety = len(secret.encode("utf-8", "surrogateescape")), len(set(secret))
    found = f"{length} bytes, {variety} different"
    if length < SECRET_BYTES_MIN or variety < SECRET_VARIETY_MIN:
        return Check("token secret", found, needed, "warn", "guessable from one token; make one: openssl rand -hex 32")
    return Check("token secret", found, needed, "ok")


def check_peer(peer: Peer) -> Check:
    needed = f"{peer.scheme}: an answer in {PROBE_S:g} s"
    if not peer.fault:
        return Check(peer.name, "answers", needed, "ok")
    cure = CURES.get(peer.name, "start it or correct its URL; what asks it gets an error meanwhile")
    return Check(peer.name, peer.fault, needed, "fail", cure)


CURES = {
    "bus": "start it or correct its URL; a gateway without its bus waits and says not ready",
    "registry": "start it or correct its URL; without it nobody can connect",
    "backend": "start it or correct its URL; clients get `backend unavailable` meanwhile",
    "auth": "start it or correct its URL; without it nobody can connect",
}

CHECKS: Sequence[Callable[[Readings, Settings], Check]] = (
    check_descriptors,
    check_files,
    check_backlog,
    check_conntrack,
    check_memory,
    check_clock,
    check_port,
    check_metrics_port,
    check_grpc_port,
    check_tls,
    check_secret,
)


def judge(machine: Readings, settings: Settings, *, load_test: bool = False) -> list[Check]:
    checks = [*CHECKS, check_port_range] if load_test else CHECKS
    return [check(machine, settings) for check in checks] + [check_peer(peer) for peer in machine.peers]


def _at_least(
    name: str, found: int | None, needed: int, cure: str, *, otherwise: Verdict = "fail", note: str = ""
) -> Check:
    if found is None:
        return Check(name, "unknown", f"{needed:,}", "ok")
    verdict: Verdict = "ok" if found >= needed else otherwise
    return Check(name, f"{found:,}{note}", f"{needed:,}", verdict, "" if verdict == "ok" else cure)


def _port(name: str, host: str, port: int, fault: str, key: str) -> Check:
    needed = f"{host}:{port} free"
    if fault:
        cure = f"ss -ltnp 'sport = :{port}' shows who has it: fine if it is this gateway, else change {key}"
        return Check(name, fault, needed, "fail", cure)
    return Check(name, "free" if port else "any free one", needed, "ok")


def _size(count: int) -> str:
    return f"{count / (1 << 30):,.1f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):,.0f} MiB"
