"""The payload log of a process whose disk is full, until there is room again."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

FULL_DISK = """
import resource, sys
from pathlib import Path
from headrace.control.payloads.files import list_files, read_batches
from headrace.control.payloads.writer import PayloadWriter
from headrace.core import SystemClock
from headrace.core.spec.observe import PayloadLogSpec
from tests.unit.control.payloads.test_torn_files import sample

root = Path(sys.argv[1])
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
writer = PayloadWriter(root=root, clock=SystemClock())
for number in range(60):
    writer.add("m", "1", PayloadLogSpec(), [sample(number)])
writer.stop()

def report():
    kept = [row for file in list_files(root / "m") for batch in read_batches(file.path)
            for row in batch.to_pylist()]
    print(len(kept), writer.written_of("m"), writer.dropped_of("m"))

report()
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
writer = PayloadWriter(root=root, clock=SystemClock())
writer.add("m", "1", PayloadLogSpec(), [sample(60)])
writer.stop()
report()
print(*{path.suffix for path in (root / "m").iterdir()})
"""


@pytest.mark.parametrize("limit", [6000, 9001, 12345])
def test_a_disk_that_takes_a_part_of_a_batch_costs_that_batch_alone_until_there_is_room(
    tmp_path: Path, limit: int
) -> None:
    """The system's limit on a file's size cuts a write in two, as a disk that fills up does."""
    done = subprocess.run(  # this Python
        [sys.executable, "-c", FULL_DISK, str(tmp_path), str(limit)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    full, restarted, suffixes = done.stdout.splitlines()
    kept, written, dropped = map(int, full.split())
    assert kept == written
    assert written + dropped == 60
    assert dropped >= 1
    assert [int(word) for word in restarted.split()] == [kept + 1, 1, 0]
    assert suffixes == ".parquet"
