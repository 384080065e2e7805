"""The example from training to a stream of updates does what its page says."""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.test_pages import BIN, PORTS, ROOT, free_ports, story_environment, with_ports

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.long]
EXAMPLE = ROOT / "examples" / "features"


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not pytest's tmp_path: a socket's path may have 107 bytes only.
    with tempfile.TemporaryDirectory(prefix="hr-example-") as name:
        folder = Path(name) / "example"
        shutil.copytree(EXAMPLE, folder)
        yield folder
        stop = [str(BIN / "headrace"), "down", "--home", str(folder / ".headrace")]
        subprocess.run(stop, check=False, capture_output=True, timeout=60)


def test_the_answer_follows_what_becomes_known(folder: Path) -> None:
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    environment = story_environment(ports, folder.parent / "user")

    def shell(command: str, status: int = 0) -> str:
        done = subprocess.run(
            ["/bin/bash", "-c", f"set -euo pipefail\n{command}"],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout

    ask = f"{sys.executable} ask.py 17 400 {with_ports('http://127.0.0.1:8000', ports)}"
    trained = shell(f"{sys.executable} train.py")
    assert float(trained.partition("fraud.json: ")[2].partition("%")[0]) > 95
    shell("headrace features apply features.yaml && headrace features materialize")
    shell("headrace models push fraud fraud.json && headrace up headrace.yaml --detach")
    before = float(shell(ask))

    shell(f"{sys.executable} updates.py 17 400 | headrace features push purchases -")
    after = float(shell(ask))

    assert before > 0.5 > after
    # Enough is kept for somebody to see that training would not know of the update.
    found: subprocess.CompletedProcess[bytes] | None = None
    for _ in range(30):
        shell(ask)
        found = subprocess.run(
            [str(BIN / "headrace"), "features", "skew", "fraud", "--json"],
            cwd=folder,
            env=environment,
            capture_output=True,
            check=False,
            timeout=60,
        )
        if found.returncode == 3:
            break
    assert found is not None
    causes = {cause for one in json.loads(found.stdout)["features"] for cause in one["causes"]}
    assert causes == {"ONLY_ONLINE"}
