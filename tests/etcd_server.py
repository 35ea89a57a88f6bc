"""A real etcd for tests, one node on loopback, and a client of its own to look at what it holds.

Rule: as any server of the tests (`tests/servers.py`). The client is the library's, not ours: what it sees, any reader
of the registry's keys sees.
"""

import contextlib
import http.client
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import aetcd
import pytest

from tests.servers import Server, free_port


class EtcdServer(Server):
    """What it confirmed survives `kill`, and `wipe` takes it away. `options` as on its command line."""

    name = "etcd"
    scheme = "etcd"

    def __init__(self, *options: str) -> None:
        port, directory = free_port(), Path(tempfile.mkdtemp(prefix="tidegate-etcd-"))
        client, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{free_port(but=port)}"
        command = [etcd_binary(), "--data-dir", str(directory / "data"), "--logger", "zap", "--log-level", "error"]
        command += ["--listen-client-urls", client, "--advertise-client-urls", client]
        command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        command += ["--initial-cluster", f"default={peer}", "--unsafe-no-fsync", *options]
        super().__init__(command, port, directory)

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[aetcd.Client]:
        client = aetcd.Client("127.0.0.1", self.port, timeout=10)
        try:
            yield client
        finally:
            await client.close()

    async def holds(self, prefix: str) -> dict[str, str]:
        """Keys below the prefix, as another program sees them."""
        async with self.client() as client:
            found = await client.get_prefix(prefix.encode())
            return {pair.key.decode(): pair.value.decode() for pair in found}

    def _answers(self) -> bool:
        probe = http.client.HTTPConnection("127.0.0.1", self.port, timeout=1)
        with contextlib.closing(probe), contextlib.suppress(OSError, http.client.HTTPException):
            probe.request("GET", "/health")
            return b'"true"' in probe.getresponse().read()
        return False


def etcd_binary() -> str:
    found = shutil.which("etcd")
    if found is None:
        pytest.fail(
            "etcd is not installed. Install it with: make setup (or sudo apt-get install -y etcd-server), "
            "or leave out the tests that need it with: pytest --without-servers"
        )
    return found
