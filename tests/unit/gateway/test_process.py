import os
from pathlib import Path

from headrace.gateway.process import (
    Process,
    ProcessRecord,
    command_of,
    reap,
    started_at,
)

_NO_PID = 2**22 + 1  # above Linux's largest


def test_a_process_is_known_by_its_number_and_its_start() -> None:
    started = started_at(os.getpid())
    assert started is not None

    assert Process(ProcessRecord(pid=os.getpid(), started=started)).is_running()
    assert not Process(ProcessRecord(pid=os.getpid(), started=started + 1)).is_running()


def test_a_process_that_is_gone_has_no_start_and_no_command() -> None:
    assert started_at(_NO_PID) is None
    assert command_of(_NO_PID) == ()
    assert reap(_NO_PID) is None


def test_a_command_is_read_word_by_word() -> None:
    assert "python" in Path(command_of(os.getpid())[0]).name
