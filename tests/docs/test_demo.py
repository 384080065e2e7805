"""`make demo ONCE=1` is what a newcomer runs first."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.long
@pytest.mark.e2e
def test_the_demo_stops_by_itself_and_every_check_holds() -> None:
    done = subprocess.run(  # noqa: S603  # ours
        [sys.executable, ROOT / "scripts/demo.py", "--once"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout
