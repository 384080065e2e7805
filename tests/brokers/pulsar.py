"""Apache Pulsar standalone on loopback: broker, bookie and metadata in one process."""

import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scripts.brokers import jars
from tests.brokers.java import ServerProcess, skip_without, write_logging, write_properties
from tests.ports import free_port

_OPENED: Final = (
    "java.base/java.lang", "java.base/java.util", "java.base/java.util.zip", "java.base/java.io",
    "java.base/java.nio", "java.base/java.net", "java.base/sun.net",
    "java.base/jdk.internal.loader", "java.base/jdk.internal.misc",
    "java.base/jdk.internal.platform", "java.management/sun.management",
    "jdk.management/com.sun.management.internal",
)  # fmt: skip
"""Packages into which Pulsar and Netty reflect."""


@dataclass(kw_only=True)
class Pulsar(ServerProcess):
    """A standalone Pulsar; it keeps what it has over a stop and a kill."""

    url: str
    admin: str

    def get(self, path: str) -> bytes:
        """Return what the admin API answers for a path; empty if it does not answer 200."""
        try:
            with urllib.request.urlopen(f"{self.admin}/admin/v2/{path}", timeout=5) as answer:  # noqa: S310  # ours
                body: bytes = answer.read()
                return body
        except (OSError, urllib.error.HTTPError):
            return b""


@contextmanager
def running_pulsar(folder: Path, options: Mapping[str, object] | None = None) -> Iterator[Pulsar]:
    """Run a Pulsar until the block ends; the test is skipped where there is none.

    Args:
        options: More options of the broker.
    """
    skip_without("pulsar")
    folder.mkdir(parents=True, exist_ok=True)
    port, web, bookie = free_port(), free_port(), free_port()
    conf = folder / "standalone.conf"
    write_properties(conf, _properties(port, web, bookie) | dict(options or {}))
    command = [
        *("java", "-Xms256m", "-Xmx1g", "-XX:MaxDirectMemorySize=1g", "-XX:TieredStopAtLevel=1"),
        *(argument for name in _OPENED for argument in ("--add-opens", f"{name}=ALL-UNNAMED")),
        "-Dio.netty.tryReflectionSetAccessible=true",
        write_logging(folder, "org.apache.pulsar.PulsarStandalone"),
        *("-cp", f"{jars('pulsar')}/*", "org.apache.pulsar.PulsarStandaloneStarter"),
        # As an option: the starter does not parse the URL of a metadata store in the file.
        *("-c", str(conf), "--metadata-dir", str(folder / "metadata")),
        *("--bookkeeper-dir", str(folder / "bookie"), "--bookkeeper-port", str(bookie)),
        *("--no-functions-worker", "--no-stream-storage", "--advertised-address", "127.0.0.1"),
    ]
    server = Pulsar(
        command=command,
        log=folder / "pulsar.log",
        is_ready=lambda: (
            server.get("brokers/ready") == b"ok"
            and b"public/default" in server.get("namespaces/public")
        ),
        url=f"pulsar://127.0.0.1:{port}",
        admin=f"http://127.0.0.1:{web}",
    )
    try:
        server.start()
        yield server
    finally:
        server.kill()


def _properties(port: int, web: int, bookie: int) -> dict[str, object]:
    return {
        "clusterName": "standalone",
        "brokerServicePort": port,
        "webServicePort": web,
        "bindAddress": "127.0.0.1",
        "advertisedAddress": "127.0.0.1",
        "zookeeperServers": "",
        "managedLedgerDefaultEnsembleSize": 1,
        "managedLedgerDefaultWriteQuorum": 1,
        "managedLedgerDefaultAckQuorum": 1,
        "managedLedgerCacheSizeMB": 64,
        "allowAutoTopicCreation": "true",
        "allowAutoTopicCreationType": "non-partitioned",
        "brokerDeleteInactiveTopicsEnabled": "false",
        "defaultRetentionTimeInMinutes": -1,
        "defaultRetentionSizeInMB": -1,
        "loadManagerClassName": "org.apache.pulsar.broker.loadbalance.NoopLoadManager",
        "functionsWorkerEnabled": "false",
        "webSocketServiceEnabled": "false",
        "numIOThreads": 2,
        "numOrderedExecutorThreads": 2,
        "numHttpServerThreads": 8,
        # Else one that was killed comes back as another bookie, without its data.
        "bookieId": f"127.0.0.1:{bookie}",
        "bookiePort": bookie,
        "httpServerEnabled": "false",
        # Else it takes a random port of all interfaces.
        "allowEphemeralPorts": "true",
        "listeningInterface": "lo",
        "allowLoopback": "true",
        "diskUsageThreshold": 0.99,
        "diskUsageWarnThreshold": 0.98,
        "dbStorage_writeCacheMaxSizeMb": 32,
        "dbStorage_readAheadCacheMaxSizeMb": 16,
        "dbStorage_rocksDB_blockCacheSize": 16777216,
    }
