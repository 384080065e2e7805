"""Pulsar keeps every broker's contract; in a process of its own, as its client spoils others.

Once pulsar-client 3.13 is loaded, OpenVINO loads no model in that process, and errors of ONNX
Runtime lose their classes.
"""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "which", ["a_member or nothing or order", pytest.param("test_", marks=pytest.mark.long)]
)
def test_pulsar_keeps_the_contract_of_brokers(which: str) -> None:
    """Half a second each, of waiting: a few show that it goes, all take half a minute."""
    cases = Path(__file__).with_name("pulsar_cases.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", which]
    command.append(str(cases))
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)  # noqa: S603  # ours
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "passed" in done.stdout
