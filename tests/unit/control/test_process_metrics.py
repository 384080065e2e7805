import os

from headrace.control.plane.metrics import process_families
from tests.metrics import exposed


def test_a_process_tells_its_memory_and_time() -> None:
    text = exposed(process_families({"control": os.getpid()}))

    assert 'headrace_process_memory_bytes{process="control"} ' in text
    assert 'headrace_process_cpu_seconds_total{process="control"} ' in text


def test_a_process_that_ended_is_left_out() -> None:
    gone = 2**22 + 1  # above what a pid may be

    assert "process=" not in exposed(process_families({"gone": gone}))
