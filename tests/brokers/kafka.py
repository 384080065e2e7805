"""Clusters of Apache Kafka on loopback: one broker or three, in KRaft mode."""

import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from confluent_kafka.admin import AdminClient

from scripts.brokers import jars
from tests.brokers.java import (
    ServerProcess,
    listens,
    skip_without,
    write_logging,
    write_properties,
)
from tests.certificates import Authority
from tests.ports import free_port

USER: Final = "scorer"
PASSWORD: Final = "sc0rer"  # noqa: S105  # of a server on loopback
SHORT_SESSIONS: Final = {
    "group.consumer.min.session.timeout.ms": 6000,
    "group.consumer.session.timeout.ms": 6000,
    "group.consumer.min.heartbeat.interval.ms": 1000,
    "group.consumer.heartbeat.interval.ms": 1000,
}
"""Options: sessions as short as those of classic groups may be."""
_MECHANISMS: Final = ("SCRAM-SHA-256", "SCRAM-SHA-512")
_CLUSTER_ID: Final = "MkU3OEVBNTcwNTJENDM2Qg"
_LOGIN: Final = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
_TOOL_WITHIN_S: Final = 120.0
_ASK_S: Final = 10.0


@dataclass(frozen=True, kw_only=True)
class KafkaCluster:
    """Brokers that run; each is a controller too.

    Args:
        ports: Of each listener, by its name, those of all brokers.
        authority: What signed the brokers' certificate; only of a secure cluster.
    """

    folder: Path
    brokers: list[ServerProcess]
    ports: Mapping[str, list[int]]
    authority: Path | None

    @property
    def bootstrap(self) -> str:
        return self.servers("PLAINTEXT")

    @property
    def port(self) -> int:
        """The first broker's."""
        return self.ports["PLAINTEXT"][0]

    @property
    def process(self) -> "subprocess.Popen[bytes] | None":
        """The first broker's."""
        return self.brokers[0].process

    def servers(self, listener: str) -> str:
        """Return the addresses of all brokers, for clients."""
        return ",".join(f"127.0.0.1:{port}" for port in self.ports[listener])

    def urls(self) -> dict[str, str]:
        """Return the URL of each listener, by what it speaks."""
        found = {"Kafka": f"kafka://{self.bootstrap}"}
        if self.authority is not None:
            login = f"sasl.mechanism=SCRAM-SHA-512&sasl.username={USER}&sasl.password={PASSWORD}"
            for name, more in (
                ("SASL_PLAINTEXT", ""),
                ("SASL_SSL", f"&ssl.ca.location={self.authority}"),
            ):
                address = f"kafka://{self.servers(name)}?security.protocol={name}&{login}{more}"
                found[f"Kafka, {name}"] = address
        return found

    def start(self) -> None:
        """Start all brokers that do not run, with their data."""
        stopped = [broker for broker in self.brokers if not broker.is_running]
        for broker in stopped:
            broker.begin()
        for broker in stopped:
            broker.wait_until_ready()

    def stop(self) -> None:
        for broker in self.brokers:
            broker.end()
        for broker in self.brokers:
            broker.stop()

    def admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})

    def coordinator(self, group: str) -> int:
        """Return the place in `brokers` of the one that coordinates a group."""
        admin = self.admin()  # a client that is collected drops its requests
        (described,) = admin.describe_consumer_groups([group], request_timeout=_ASK_S).values()
        number: int = described.result(2 * _ASK_S).coordinator.id
        return number - 1

    def wait_until_in_sync(self, *, within_s: float) -> None:
        """Wait until all brokers are there, and in sync for every partition."""
        admin = self.admin()
        deadline = time.monotonic() + within_s
        while behind := self._behind(admin):
            assert time.monotonic() < deadline, behind
            time.sleep(0.2)

    def _behind(self, admin: AdminClient) -> str:
        """Return what is not in sync; empty if all is."""
        about = admin.list_topics(timeout=_ASK_S)
        if len(about.brokers) < len(self.brokers):
            return f"{len(about.brokers)} of {len(self.brokers)} brokers"
        for name, topic in about.topics.items():
            for number, partition in topic.partitions.items():
                if set(partition.isrs) != set(partition.replicas):
                    return f"{name}/{number}: {partition.isrs} of {partition.replicas}"
        return ""

    def tool(self, name: str, *arguments: str) -> str:
        """Return what one of Apache's tools prints: the class `name` with these arguments."""
        command = [
            *("java", "-Xmx256m", "-XX:TieredStopAtLevel=1"),
            f"-Dlog4j2.configurationFile={self.folder / 'log4j2.xml'}",
            *("-cp", f"{jars('kafka')}/*", name, "--bootstrap-server", self.bootstrap, *arguments),
        ]
        done = subprocess.run(  # noqa: S603  # ours
            command, capture_output=True, text=True, check=False, timeout=_TOOL_WITHIN_S
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout


@contextmanager
def running_kafka(
    folder: Path,
    *,
    brokers: int = 1,
    is_secure: bool = False,
    is_fast: bool = False,
    options: Mapping[str, object] | None = None,
) -> Iterator[KafkaCluster]:
    """Run a cluster until the block ends; the test is skipped where there is no Kafka.

    Args:
        is_secure: With listeners for SCRAM, with and without TLS, for `USER` with `PASSWORD`.
        is_fast: Java compiles for throughput, not for a quick start.
        options: More options of the brokers.
    """
    skip_without("kafka")
    folder.mkdir(parents=True, exist_ok=True)
    names = ["PLAINTEXT", "CONTROLLER", *(["SASL_PLAINTEXT", "SASL_SSL"] if is_secure else [])]
    ports = {name: [free_port() for _ in range(brokers)] for name in names}
    logging = write_logging(
        folder, "kafka.server.KafkaRaftServer", "org.apache.kafka.coordinator.group"
    )
    properties = _properties(brokers, ports) | (_security(folder) if is_secure else {})
    cluster = KafkaCluster(
        folder=folder,
        brokers=[],
        ports=ports,
        authority=folder / "ca.pem" if is_secure else None,
    )
    formatting = []
    quick = [] if is_fast else ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
    java = ["java", "-Xms128m", "-Xmx512m", *quick, logging, "-cp", f"{jars('kafka')}/*"]
    scram = [
        argument
        for mechanism in _MECHANISMS
        if is_secure
        for argument in ("--add-scram", f"{mechanism}=[name={USER},password={PASSWORD}]")
    ]
    for number in range(1, brokers + 1):
        file = folder / f"{number}.properties"
        here = {name: f"{name}://127.0.0.1:{of[number - 1]}" for name, of in ports.items()}
        write_properties(
            file,
            {
                "node.id": number,
                "listeners": ",".join(here.values()),
                "advertised.listeners": ",".join(
                    address for name, address in here.items() if name != "CONTROLLER"
                ),
                "log.dirs": folder / f"data-{number}",
                **properties,
                **(options or {}),
            },
        )
        command = [*java, "kafka.tools.StorageTool", "format", "-t", _CLUSTER_ID, "-c", str(file)]
        formatting.append(subprocess.Popen([*command, *scram], stdout=subprocess.DEVNULL))  # noqa: S603  # ours
        log = folder / f"{number}.log"
        cluster.brokers.append(
            ServerProcess(
                command=[*java, "kafka.Kafka", str(file)],
                log=log,
                is_ready=lambda log=log, port=ports["PLAINTEXT"][number - 1]: (  # type: ignore[misc]
                    b"Kafka Server started" in log.read_bytes() and listens(port)
                ),
            )
        )
    assert [process.wait(_TOOL_WITHIN_S) for process in formatting] == [0] * brokers
    try:
        cluster.start()
        yield cluster
    finally:
        for broker in cluster.brokers:
            broker.kill()


def _properties(brokers: int, ports: Mapping[str, list[int]]) -> dict[str, object]:
    in_sync = min(2, brokers)
    speaks = {name: "PLAINTEXT" if name == "CONTROLLER" else name for name in ports}
    voters = enumerate(ports["CONTROLLER"], start=1)
    return {
        "process.roles": "broker,controller",
        "controller.quorum.voters": ",".join(f"{n}@127.0.0.1:{port}" for n, port in voters),
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": ",".join(f"{a}:{b}" for a, b in speaks.items()),
        "inter.broker.listener.name": "PLAINTEXT",
        "num.partitions": 1,
        "default.replication.factor": brokers,
        "min.insync.replicas": in_sync,
        "offsets.topic.replication.factor": brokers,
        "offsets.topic.num.partitions": 10,
        "transaction.state.log.replication.factor": brokers,
        "transaction.state.log.num.partitions": 10,
        "transaction.state.log.min.isr": in_sync,
        "share.coordinator.state.topic.replication.factor": brokers,
        "share.coordinator.state.topic.min.isr": in_sync,
        "auto.create.topics.enable": "false",
        "group.initial.rebalance.delay.ms": 0,  # for members that start together
        "num.network.threads": 2,
        "num.io.threads": 4,
    }


def _security(folder: Path) -> dict[str, object]:
    authority = Authority(folder)
    pair = authority.server("broker")
    store = folder / "broker-store.pem"
    store.write_bytes(pair.key.read_bytes() + pair.certificate.read_bytes())
    logins = {
        f"listener.name.{listener}.{mechanism.lower()}.sasl.jaas.config": _LOGIN
        for listener in ("sasl_plaintext", "sasl_ssl")
        for mechanism in _MECHANISMS
    }
    return {
        **logins,
        "sasl.enabled.mechanisms": ",".join(_MECHANISMS),
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": store,
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
        "allow.everyone.if.no.acl.found": "true",
    }
