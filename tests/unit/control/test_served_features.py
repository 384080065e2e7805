from pathlib import Path

import pytest

from headrace.control.features.skew_watch import ServedFeaturesStore
from headrace.features import served_directory


def test_lines_are_kept_by_service(tmp_path: Path) -> None:
    keeper = ServedFeaturesStore(tmp_path)
    keeper.append("fraud", ["{}", "[]"])
    keeper.append("people", ["1"])
    (file,) = served_directory(tmp_path, "fraud").iterdir()
    assert file.read_text() == "{}\n[]\n"
    assert file.stat().st_mode & 0o777 == 0o600
    assert (keeper.written, keeper.dropped) == (3, 0)


def test_a_disk_that_takes_nothing_is_told_once_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    served_directory(tmp_path, "x").parent.mkdir(parents=True)
    served_directory(tmp_path, "fraud").write_text("a file where a directory should be")
    keeper = ServedFeaturesStore(tmp_path)
    keeper.append("fraud", ["1"])
    keeper.append("fraud", ["2", "3"])
    assert (keeper.written, keeper.dropped) == (0, 3)
    assert len([r for r in caplog.records if "cannot store served features" in r.message]) == 1
