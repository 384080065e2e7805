"""One control plane at a time has a home, and takes over what an older one left in a file."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.control.base.home import HomeLock
from headrace.control.model.desired import DesiredArm, DesiredEndpoint, DesiredState, make_revision
from headrace.control.state import home_url, open_store, references_in, sqlite_path
from headrace.control.state.encoding import clean, decoded, encoded, join_document, split_document
from headrace.core import (
    EndpointName,
    FailedPreconditionError,
    InvalidArgumentError,
    ReplicaSettings,
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=4,
)
names = st.sampled_from(["a", "b", "c", ""])
entries = st.dictionaries(st.sampled_from(["name", "model", "x"]), json_values | names, max_size=3)


def state(generation: int) -> DesiredState:
    settings = ReplicaSettings(model_name="m", model_version="1", path="/m")
    revision = make_revision(endpoint=EndpointName("m"), model="m:1", settings=settings)
    arm = DesiredArm(revision=revision, weight=100, replicas=1)
    endpoint = DesiredEndpoint(name=EndpointName("m"), timeout_s=None, arms=(arm,))
    return DesiredState(
        generation=generation, spec={"endpoints": [{"name": "m"}]}, endpoints=(endpoint,)
    )


def write_old_file(path: Path, generation: int) -> bytes:
    """A state file as version 0.1 wrote it: without anything that came later."""
    old: dict[str, Any] = json.loads(msgspec.json.encode(state(generation)))
    del old["pools"]
    for endpoint in old["endpoints"]:
        for later in ("generation", "sticky", "mirror", "split_id", "rollout", "autoscale"):
            del endpoint[later]
    data = json.dumps({"format": 1, "state": old}).encode()
    path.write_bytes(data)
    os.utime(path, (77.0, 77.0))
    return data


def load(directory: Path) -> DesiredState:
    store = open_store(home_url(directory), legacy=directory / "state.json")
    try:
        return store.load.blocking()
    finally:
        store.close()


def test_an_old_state_file_is_taken_over_once(tmp_path: Path) -> None:
    data = write_old_file(tmp_path / "state.json", 7)
    assert references_in(home_url(tmp_path), legacy=tmp_path / "state.json") == {"m:1"}

    found = load(tmp_path)

    numbered = tuple(msgspec.structs.replace(e, generation=1) for e in state(7).endpoints)
    assert found == msgspec.structs.replace(state(7), endpoints=numbered)
    assert load(tmp_path) == found
    assert not (tmp_path / "state.json").exists()
    assert (tmp_path / "state.json.imported").read_bytes() == data
    assert references_in(home_url(tmp_path), legacy=tmp_path / "state.json") == {"m:1"}
    store = open_store(home_url(tmp_path))
    (entry,) = store.history.blocking("m")
    assert (entry.at, entry.reason, entry.document) == (
        77.0,
        "taken over from state.json",
        {"name": "m"},
    )
    store.close()


def test_a_crash_between_taking_over_and_renaming_is_finished(tmp_path: Path) -> None:
    data = write_old_file(tmp_path / "state.json", 7)
    found = load(tmp_path)
    write_old_file(tmp_path / "state.json", 7)

    assert load(tmp_path) == found
    assert not (tmp_path / "state.json").exists()
    assert (tmp_path / "state.json.imported").read_bytes() == data


def test_an_old_file_beside_another_state_is_left_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_old_file(tmp_path / "state.json", 7)
    found = load(tmp_path)
    data = write_old_file(tmp_path / "state.json", 9)

    with caplog.at_level(logging.WARNING, "headrace.control"):
        assert load(tmp_path) == found
    assert (tmp_path / "state.json").read_bytes() == data
    assert "an old state file is ignored" in caplog.text


def test_a_new_home_needs_nothing(tmp_path: Path) -> None:
    assert references_in(home_url(tmp_path)) == set()
    assert references_in(home_url(tmp_path), legacy=tmp_path / "state.json") == set()
    assert list(tmp_path.iterdir()) == []
    assert load(tmp_path) == DesiredState()


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'{"format": 1}', b'{"format": 9, "state": {}}', b"\xff"]
)
def test_a_damaged_old_file_is_told_and_left_alone(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(data)

    for _ in range(2):
        with pytest.raises(FailedPreconditionError, match=r"state\.json"):
            load(tmp_path)
    assert path.read_bytes() == data


@pytest.mark.parametrize("path", ["/a/state.db", "/a b/%41?x=1#y", "relative.db"])
def test_a_file_is_named_as_it_is(path: str) -> None:
    assert sqlite_path(f"sqlite:///{path}") == Path(path).absolute()
    assert sqlite_path(f"sqlite+pysqlite:///{path}") == Path(path).absolute()


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_a_server_is_no_file(scheme: str) -> None:
    assert sqlite_path(f"{scheme}://ann:secret@db/x") is None


@pytest.mark.parametrize(
    "url",
    [
        "",
        "secret",
        "sqlite://",
        "sqlite:///",
        "mysql://ann:secret@db/x",
        "postgresql:ann:secret@db",
    ],
)
def test_what_names_no_database_is_refused_without_a_word_of_it(url: str) -> None:
    with pytest.raises(InvalidArgumentError, match="names no database; use sqlite:///PATH") as told:
        open_store(url)
    assert "secret" not in str(told.value)


@pytest.mark.parametrize(
    "url", ["postgresql://ann:secret@db:port/x", "postgres://ann:sec#ret/secret@db:x/y"]
)
def test_a_url_that_cannot_be_read_says_how_one_looks(url: str) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot be read; it looks like") as told:
        open_store(url)
    assert "secret" not in str(told.value)


@given(st.none() | json_values | st.lists(entries | json_values, max_size=5), st.sets(names))
def test_a_document_taken_apart_is_put_together_again(listed: object, own: set[str]) -> None:
    for spec in ({"version": 1, "endpoints": listed, "gateway": {}}, {"version": 1}):
        rest, found = split_document(spec, own)

        assert join_document(rest, found) == spec
        assert found.keys() <= own
        assert (
            join_document(decoded(encoded(rest), dict[str, Any], description="it"), found) == spec
        )


@given(st.text(st.characters(), max_size=9))
def test_cleaned_text_is_stored_by_every_database(text: str) -> None:
    cleaned = clean(text)

    assert clean(cleaned) == cleaned
    assert "\x00" not in cleaned
    assert cleaned.encode().decode() == cleaned
    if text.isascii() and "\x00" not in text:
        assert cleaned == text


def test_a_second_control_plane_is_told_the_pid_of_the_first(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    first, second = (HomeLock(tmp_path / "run" / "control.lock") for _ in range(2))
    first.acquire()

    with pytest.raises(FailedPreconditionError, match=rf"pid {os.getpid()}\)"):
        second.acquire()
    first.release()
    first.release()
    second.acquire()
    second.release()
