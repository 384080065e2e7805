import asyncio
import errno
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from headrace.core.spec.access import (
    AccessSettings,
    EndpointLimitsSpec,
    JwtSpec,
    LimitSpec,
    TierSpec,
)
from headrace.gateway import (
    ApiKey,
    EndpointRoute,
    GatewayPolicy,
    GatewayUnavailableError,
    RevisionTarget,
    Snapshot,
    SnapshotRejectedError,
    build_snapshot,
)
from headrace.gateway.publisher import Publisher, StatKind, documents_of, write_document
from headrace.gateway.snapshot import (
    CLUSTERS,
    FILTERS,
    KINDS,
    LISTENERS,
    ROUTES,
    FileKind,
    read_document,
)
from tests.unit.gateway.arbitrary import gateway_settings

pytestmark = pytest.mark.anyio
Judge = Callable[[FileKind], bool]


def _accepts(_: FileKind) -> bool:
    return True


@dataclass
class FakeEnvoy:
    """Reads the files whenever it is asked, as Envoy does when they are renamed into place."""

    directory: Path
    accepts: Judge = _accepts
    answers: int = 1_000_000
    seen: dict[FileKind, str] = field(default_factory=dict)
    stats_of: dict[FileKind, dict[str, str | int]] = field(default_factory=dict)
    taken: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for kind in KINDS:
            version = read_document((self.directory / kind.file).read_text()).version
            self.seen[kind] = version
            self.stats_of[kind] = {"version_text": version, "update_success": 1}

    async def stats(self, pattern: str, kind: StatKind) -> dict[str, str | int]:
        self.answers -= 1
        if self.answers < 0:
            raise GatewayUnavailableError("gone")
        (file,) = (k for k in KINDS if pattern.startswith(re.escape(k.stats)))
        version = read_document((self.directory / file.file).read_text()).version
        if version != self.seen[file]:
            self._read(file, version)
        named = {f"{file.stats}.{name}": value for name, value in self.stats_of[file].items()}
        wanted = str if kind is StatKind.TEXT else int
        return {
            name: value
            for name, value in named.items()
            if re.fullmatch(pattern, name) and isinstance(value, wanted)
        }

    def _read(self, kind: FileKind, version: str) -> None:
        self.seen[kind] = version
        stats = self.stats_of[kind]
        known = stats["version_text"] == version
        if known or self.accepts(kind):
            self.taken.append(kind.file)
            stats["version_text"] = version
            stats["update_success"] = int(stats["update_success"]) + 1
        else:
            stats["update_rejected"] = int(stats.get("update_rejected", 0)) + 1


KEY = ApiKey(id="k1", name="robot", digest="0" * 64, scopes=("infer:*",))
GOLD = TierSpec(name="gold", limits=LimitSpec(requests_per_s=1.0))
DAILY = EndpointLimitsSpec(total=LimitSpec(requests_per_s=1.0, requests_per_day=9))
CORP = JwtSpec(name="corp", issuer="https://id.example", audiences=("gw",), jwks_file="k")


def _snapshot(
    *addresses: str, http_port: int = 8000, policy: GatewayPolicy | None = None
) -> Snapshot:
    revision = RevisionTarget(version=str(len(addresses)), replicas=addresses, weight=100)
    limits = EndpointLimitsSpec() if policy is None or not policy.access.tiers else DAILY
    endpoint = EndpointRoute(name="m", arms=(revision,), limits=limits)
    settings = gateway_settings(http_port=http_port)
    return build_snapshot(settings, [endpoint], policy or GatewayPolicy())


ONE = _snapshot("10.0.0.1:1")
TWO = _snapshot("10.0.0.1:1", "10.0.0.1:2")
WITH_KEY = _snapshot("10.0.0.1:1", policy=GatewayPolicy(keys=(KEY,)))
MOVED = _snapshot(
    "10.0.0.1:1",
    "10.0.0.1:2",
    http_port=9000,
    policy=GatewayPolicy(
        access=AccessSettings(jwt=(CORP,), tiers=(GOLD,)), keys=(KEY,), key_sets={"corp": "{}"}
    ),
)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    for kind, document in documents_of(ONE).items():
        write_document(tmp_path, kind, document)
    return tmp_path


def _publisher(envoy: FakeEnvoy) -> Publisher:
    log = envoy.directory / "envoy.log"
    return Publisher(directory=envoy.directory, admin=envoy, log=log, timeout_s=10.0)


def _texts(run_dir: Path) -> dict[str, str]:
    return {kind.file: (run_dir / kind.file).read_text() for kind in KINDS}


async def test_clusters_come_before_the_routes_to_them_and_go_after(run_dir: Path) -> None:
    envoy = FakeEnvoy(run_dir)

    await _publisher(envoy).publish(MOVED)

    filters = [kind.file for kind in FILTERS.values()]
    assert envoy.taken == [
        CLUSTERS.file,
        *filters,
        ROUTES.file,
        LISTENERS.file,
        CLUSTERS.file,
    ]
    assert _texts(run_dir) == {k.file: d.text for k, d in documents_of(MOVED).items()}


async def test_a_new_key_replaces_one_file(run_dir: Path) -> None:
    envoy = FakeEnvoy(run_dir)

    await _publisher(envoy).publish(WITH_KEY)

    assert envoy.taken == ["identify.json"]


async def test_what_is_in_force_is_not_written_again(run_dir: Path) -> None:
    envoy = FakeEnvoy(run_dir)

    await _publisher(envoy).publish(ONE)

    assert envoy.taken == []


@pytest.mark.parametrize("refused", KINDS)
async def test_whatever_is_refused_every_file_is_as_it_was(
    run_dir: Path, refused: FileKind
) -> None:
    before = _texts(run_dir)
    envoy = FakeEnvoy(run_dir, accepts=lambda kind: kind is not refused)

    with pytest.raises(SnapshotRejectedError):
        await _publisher(envoy).publish(MOVED)

    assert _texts(run_dir) == before
    assert {k.file: v for k, v in envoy.seen.items()} == {
        name: json.loads(text)["version_info"] for name, text in before.items()
    }


async def test_a_refusal_without_a_logged_reason_still_names_the_file(run_dir: Path) -> None:
    envoy = FakeEnvoy(run_dir, accepts=lambda _: False)

    with pytest.raises(SnapshotRejectedError, match=r"cds\.json \(no reason in"):
        await _publisher(envoy).publish(TWO)


@pytest.mark.parametrize("answers", range(12))
async def test_an_envoy_that_ends_at_any_moment_leaves_files_that_agree(
    run_dir: Path, answers: int
) -> None:
    before = _texts(run_dir)
    envoy = FakeEnvoy(run_dir, answers=answers)

    try:
        await _publisher(envoy).publish(MOVED)
    except GatewayUnavailableError:
        assert _texts(run_dir) == before
    else:
        assert envoy.taken[-1] == CLUSTERS.file


async def test_waiting_publishes_are_skipped_for_the_newest(run_dir: Path) -> None:
    envoy = FakeEnvoy(run_dir)
    publisher = _publisher(envoy)

    async with asyncio.TaskGroup() as group:
        for snapshot in (TWO, ONE, TWO, ONE, MOVED):
            group.create_task(publisher.publish(snapshot))

    assert _texts(run_dir) == {k.file: d.text for k, d in documents_of(MOVED).items()}
    assert len(envoy.taken) <= 3 + len(KINDS)  # one, and the newest


@pytest.mark.parametrize("full", [CLUSTERS, ROUTES, LISTENERS])
async def test_a_full_disk_is_an_error_of_ours_and_every_file_is_as_it_was(
    run_dir: Path, full: FileKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    envoy = FakeEnvoy(run_dir)
    publisher = _publisher(envoy)
    before = _texts(run_dir)
    flush = os.fsync

    def fsync(descriptor: int) -> None:
        if full.file in Path(f"/proc/self/fd/{descriptor}").readlink().name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(GatewayUnavailableError, match="No space left on device"):
            await publisher.publish(MOVED)

    assert _texts(run_dir) == before
    await publisher.publish(MOVED)
    assert _texts(run_dir) == {k.file: d.text for k, d in documents_of(MOVED).items()}
