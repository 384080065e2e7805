"""State in a JSON file that survives a restart."""

import logging
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.state_file import StateFile


class Nested(msgspec.Struct, frozen=True):
    text: str = ""
    inner: "Nested | None" = None


Value = dict[str, list[Nested]]
nested = st.recursive(
    st.builds(Nested, text=st.text(st.characters(exclude_categories=["Cs"]))),
    lambda inner: st.builds(Nested, inner=inner),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.lists(nested)))
def test_a_saved_value_is_loaded_again(folder: Path, value: Value) -> None:
    file = StateFile(folder / "f", Value, "the test")
    file.save(value)

    assert file.load() == value


@given(st.binary() | st.sampled_from([b'{"a":[{"text":"\xff"}]}', b'{"a":[' + b'{"inner":' * 5000]))
def test_no_content_is_an_error_of_loading(folder: Path, content: bytes) -> None:
    (folder / "f").write_bytes(content)

    assert isinstance(StateFile(folder / "f", Value, "the test").load(), dict | None)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"a":[{"text":"secret\xff"}]}', b'{"a":[' + b'{"inner":' * 5000],
)
def test_damage_is_logged_once_without_the_content(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    (tmp_path / "f").write_bytes(content)

    assert StateFile(tmp_path / "f", Value, "the test").load() is None

    (record,) = caplog.records
    assert (record.levelno, record.message) == (logging.WARNING, "cannot read the test")
    assert "secret" not in str(vars(record))
    assert str(tmp_path / "f") in str(vars(record))


def test_a_missing_file_is_no_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_bytes(b"{}")

    assert StateFile(tmp_path / "f", Value, "the test").load() is None
    assert StateFile(tmp_path / "file" / "f", Value, "the test").load() is None
    assert caplog.records == []


def test_nothing_is_stored_without_a_path() -> None:
    file = StateFile(None, Value, "the test")
    file.save({"a": []})

    assert file.load() is None


def test_a_value_that_cannot_be_written_is_an_error_or_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "f").mkdir()
    file = StateFile(tmp_path / "f", Value, "the test")

    with pytest.raises(OSError, match="directory"):
        file.save({})
    file.try_save({})

    assert [record.message for record in caplog.records] == ["cannot write the test"]
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
