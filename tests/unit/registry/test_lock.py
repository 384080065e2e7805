from pathlib import Path

import pytest

from headrace.core import UnavailableError
from headrace.core.files import exclusive


def test_a_second_holder_in_the_same_process_has_to_wait(tmp_path: Path) -> None:
    lock = tmp_path / "lock"

    with (
        exclusive(lock, timeout_s=1),
        pytest.raises(UnavailableError, match="has held"),
        exclusive(lock, timeout_s=0),
    ):
        pass


def test_a_lock_is_free_after_an_error(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with pytest.raises(KeyError), exclusive(lock, timeout_s=1):
        raise KeyError

    with exclusive(lock, timeout_s=0):
        pass
