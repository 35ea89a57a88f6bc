"""What the machine and its files say, read once. Rule: a reading never fails; what can't be read is None."""

import contextlib
import ctypes
import os
import resource
import socket
import ssl
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tidegate.config import Settings
from tidegate.doctor.probes import Peer

# adjtimex(2): the state in which the kernel knows of no synchronisation, and room for `struct timex`
TIME_ERROR = 5
TIMEX_BYTES = 256
SYSCTL = Path("/proc/sys")
# Of the version-2 control group that a container sees as its own
GROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Readings:
    """What the machine says. None = it does not say."""

    cores: int
    descriptors: int  # RLIMIT_NOFILE, hard: the engine raises the soft one to it
    private_tables: bool  # close_range(2), Linux 5.9
    files: int | None  # fs.file-max
    backlog: int | None  # net.core.somaxconn
    port_range: tuple[int, int] | None
    conntrack: tuple[int, int] | None  # entries now, at most
    memory: int | None  # available, with the limit of the control group
    year: int
    clock_synchronised: bool | None
    main_port_fault: str = ""  # why it can't be bound
    metrics_port_fault: str = ""
    grpc_port_fault: str | None = None  # None = the profile serves no gRPC
    tls_fault: str = ""
    tls_days_left: int | None = None
    peers: tuple[Peer, ...] = ()  # what the profile is connected to


def read_machine(settings: Settings, peers: tuple[Peer, ...] = (), *, serves_grpc: bool = False) -> Readings:
    tls_fault, tls_days_left = _read_tls(settings.server.tls_cert, settings.server.tls_key)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    files = _number(SYSCTL / "fs/file-max")
    return Readings(
        cores=len(os.sched_getaffinity(0)),
        descriptors=hard if hard != resource.RLIM_INFINITY else 1 << 30,
        private_tables=_kernel() >= (5, 9),
        files=files,
        backlog=_number(SYSCTL / "net/core/somaxconn"),
        port_range=_read_port_range(),
        conntrack=_read_conntrack(),
        memory=_read_memory(),
        year=datetime.now(UTC).year,
        clock_synchronised=_read_clock(),
        main_port_fault=_read_port(settings.server.host, settings.server.port),
        metrics_port_fault=_read_port(settings.metrics.host, settings.metrics.port),
        grpc_port_fault=_read_port(settings.grpc.host, settings.grpc.port) if serves_grpc else None,
        tls_fault=tls_fault,
        tls_days_left=tls_days_left,
        peers=peers,
    )


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None


def _kernel() -> tuple[int, int]:
    major, _, rest = os.uname().release.partition(".")
    minor = "".join(char if char.isdigit() else " " for char in rest).split()
    return (int(major) if major.isdigit() else 0, int(minor[0]) if minor else 0)


def _read_port_range() -> tuple[int, int] | None:
    try:
        low, high = (SYSCTL / "net/ipv4/ip_local_port_range").read_text().split()
        return int(low), int(high)
    except (OSError, ValueError):
        return None


def _read_conntrack() -> tuple[int, int] | None:
    folder = SYSCTL / "net/netfilter"
    now, most = _number(folder / "nf_conntrack_count"), _number(folder / "nf_conntrack_max")
    return (now, most) if now is not None and most is not None else None


def _read_memory() -> int | None:
    """The machine's, or what is left to the container where that is less."""
    return min(filter(None, (_machine_memory(), _group_memory())), default=None)


def _machine_memory() -> int | None:
    try:
        return _field(Path("/proc/meminfo"), "MemAvailable:") * 1024
    except (OSError, ValueError, StopIteration):
        return None


def _group_memory() -> int | None:
    """File cache counts as used but is given back on demand."""
    most, now = _number(GROUP / "memory.max"), _number(GROUP / "memory.current")
    if most is None or now is None:
        return None
    with contextlib.suppress(OSError, ValueError, StopIteration):
        now -= _field(GROUP / "memory.stat", "inactive_file")
    return max(1, most - now)


def _field(path: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith(name))


def _read_clock() -> bool | None:
    """Asks the kernel without changing anything: adjtimex(2) with no mode set."""
    try:
        state = int(ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(TIMEX_BYTES)))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != TIME_ERROR


def _read_port(host: str, port: int) -> str:
    if port == 0:
        return ""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return ""


def _read_tls(certificate: str, key: str) -> tuple[str, int | None]:
    """Why the pair can't be used, and how long it still can."""
    if not certificate:
        return "", None
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key or None)
        from cryptography import x509  # noqa: PLC0415 - a slow import that only TLS needs

        ends = x509.load_pem_x509_certificate(Path(certificate).read_bytes()).not_valid_after_utc
        return "", int((ends.timestamp() - time.time()) // 86400)
    except ssl.SSLError as error:
        return f"unusable: {error.reason or 'not PEM'}".lower().replace("_", " "), None
    except (OSError, ValueError) as error:
        return f"unreadable: {getattr(error, 'strerror', None) or 'not PEM'}".lower(), None
