"""A secret is in force when Envoy says so; what it refuses leaves what was there."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from headrace.gateway import GatewayUnavailableError, SecretFiles, SnapshotRejectedError
from headrace.gateway.publisher import Publisher, StatKind
from headrace.gateway.resources import Resource
from headrace.gateway.tls import authorities_secret, certificate_secret, secret_file

pytestmark = pytest.mark.anyio


@dataclass
class FakeEnvoy:
    """Uses one secret, and reads its file whenever it is asked."""

    directory: Path
    is_there: bool = True
    uses: bool = True
    accepts: bool = True
    version: str = "none"
    refused: int = 0
    _seen: set[str] = field(default_factory=set)

    async def stats(self, pattern: str, kind: StatKind) -> dict[str, str | int]:
        if not self.is_there:
            raise GatewayUnavailableError("gone")
        if not self.uses:
            return {}
        path = self.directory / secret_file("a")
        found = json.loads(path.read_text())["version_info"] if path.exists() else "none"
        if found != self.version and found not in self._seen:
            self._seen.add(found)
            if self.accepts:
                self.version = found
            else:
                self.refused += 1
        values: dict[str, str | int] = (
            {"sds.a.version_text": self.version}
            if kind is StatKind.TEXT
            else {"sds.a.update_rejected": self.refused, "sds.a.update_failure": 0}
        )
        return {name: value for name, value in values.items() if re.fullmatch(pattern, name)}


def _secrets(envoy: FakeEnvoy) -> SecretFiles:
    log = envoy.directory / "envoy.log"
    log.touch()
    publisher = Publisher(directory=envoy.directory, admin=envoy, log=log, timeout_s=0.2)
    return SecretFiles(directory=envoy.directory, publisher=publisher)


def _secret(text: str) -> Resource:
    return certificate_secret("a", chain=text, key="key")


async def test_a_secret_is_in_force_once_envoy_names_its_version(tmp_path: Path) -> None:
    envoy = FakeEnvoy(tmp_path)
    secrets = _secrets(envoy)
    await secrets.put(_secret("one"))
    first = envoy.version
    await secrets.put(_secret("two"))
    path = tmp_path / secret_file("a")

    assert envoy.version not in {"none", first}
    assert "two" in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert secrets.has("a")


async def test_what_envoy_refuses_leaves_what_was_there(tmp_path: Path) -> None:
    envoy = FakeEnvoy(tmp_path)
    secrets = _secrets(envoy)
    await secrets.put(_secret("one"))
    envoy.accepts = False

    with pytest.raises(SnapshotRejectedError):
        await secrets.put(_secret("two"))

    assert "one" in (tmp_path / secret_file("a")).read_text()


@pytest.mark.parametrize("lacks", ["use", "envoy"])
async def test_what_nothing_asks_for_waits_in_its_file(tmp_path: Path, lacks: str) -> None:
    envoy = FakeEnvoy(tmp_path, uses=lacks != "use", is_there=lacks != "envoy")
    secrets = _secrets(envoy)

    await secrets.put(_secret("one"))

    assert "one" in (tmp_path / secret_file("a")).read_text()


async def test_the_same_again_is_not_written(tmp_path: Path) -> None:
    secrets = _secrets(FakeEnvoy(tmp_path))
    await secrets.put(_secret("one"))
    before = (tmp_path / secret_file("a")).stat().st_ino
    await secrets.put(_secret("one"))

    assert (tmp_path / secret_file("a")).stat().st_ino == before


def test_secrets_that_nobody_needs_are_removed(tmp_path: Path) -> None:
    secrets = _secrets(FakeEnvoy(tmp_path))
    secrets.write(_secret("one"))
    secrets.write(authorities_secret("b", "pem"))
    (tmp_path / "cds.json").touch()
    secrets.keep_only({"b"})

    assert {path.name for path in tmp_path.glob("*.json")} == {"cds.json", secret_file("b")}
    assert not secrets.has("a")
