"""What listeners need, and what they must not load."""

import subprocess
import sys


def test_building_a_snapshot_does_not_load_protobuf() -> None:
    """A thread that loads a model may import it at the same time, which protobuf does not bear."""
    code = """
import sys
from pathlib import Path
from headrace.gateway import EnvoySettings, build_snapshot
build_snapshot(EnvoySettings(run_dir=Path("/tmp/g")), [])
sys.exit("google.protobuf" in sys.modules)
"""

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0  # noqa: S603  # ours
