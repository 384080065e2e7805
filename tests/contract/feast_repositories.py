"""Feast repositories with the values that Feast itself read: committed ones and new ones.

`feast_fixtures.py` wrote `tests/contract/feast` with the version of Feast that `expected.json`
names. `python -m tests.contract.feast_repositories` writes it again.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import redis

from tests.contract.redis_servers import RedisServer, running_server

ROOT: Final = Path(__file__).parents[2]
COMMITTED: Final = Path(__file__).parent / "feast"
FEAST: Final = ROOT / ".venv-feast" / "bin" / "python"
NO_FEAST: Final = "no Feast here; `make setup ENV=feast` installs it in an environment of its own"
REDIS_CONFIG: Final = """
project: market
registry: {path: registry.db, registry_type: file}
online_store:
  type: redis
  connection_string: localhost:6379,unix_socket_path=${FEAST_TEST_SOCKET},db=0
"""


@dataclass(frozen=True, kw_only=True)
class Repository:
    """`expected` is what `tests/contract/feast_fixtures.py` says that Feast read."""

    path: Path
    expected: Mapping[str, Any]

    @property
    def now(self) -> float:
        return datetime.fromisoformat(self.expected["now"]).timestamp()


def committed(folder: Path) -> Repository:
    """A copy of what is committed, in `folder`."""
    shutil.copytree(COMMITTED, folder, dirs_exist_ok=True)
    return _read(folder)


def written_anew(folder: Path, *, redis_socket: Path, zone: str = "UTC") -> Repository:
    """What Feast writes now, on a machine in that time zone."""
    subprocess.run(  # noqa: S603  # ours
        [
            FEAST,
            "-W",
            "ignore",
            ROOT / "tests/contract/feast_fixtures.py",
            folder,
            "--redis",
            redis_socket,
        ],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "TZ": zone, "PYTHONDONTWRITEBYTECODE": ""},
    )
    return _read(folder)


def in_redis(repository: Repository, server: RedisServer) -> None:
    """Put what Feast wrote into a server, and let the repository name it."""
    client = redis.Redis(unix_socket_path=str(server.socket))
    client.flushall()
    dumped = json.loads((repository.path / "redis.json").read_text())
    for key, fields in dumped.items():
        mapping = {bytes.fromhex(name): bytes.fromhex(value) for name, value in fields.items()}
        client.hset(bytes.fromhex(key), mapping=mapping)  # type: ignore[arg-type]  # bytes are fine
    client.close()
    (repository.path / "feature_store.yaml").write_text(REDIS_CONFIG)


def _read(folder: Path) -> Repository:
    return Repository(path=folder, expected=json.loads((folder / "expected.json").read_text()))


if __name__ == "__main__":
    with running_server("valkey") as running:
        written_anew(COMMITTED, redis_socket=running.socket)
