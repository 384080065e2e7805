"""The desired state survives crashes, and one control plane at a time changes it."""

import os
from pathlib import Path

import pytest

from headrace.control.desired import DesiredArm, DesiredEndpoint, DesiredState, make_revision
from headrace.control.files import write_atomic
from headrace.control.store import FileStore, HomeLock
from headrace.core import ConflictError, EndpointName, FailedPreconditionError, ReplicaSettings


def state(generation: int) -> DesiredState:
    settings = ReplicaSettings(model_name="m", model_version="1", path="/m")
    revision = make_revision(endpoint=EndpointName("m"), model="m:1", settings=settings)
    arm = DesiredArm(revision=revision, weight=100, replicas=1)
    endpoint = DesiredEndpoint(name=EndpointName("m"), timeout_s=None, arms=(arm,))
    return DesiredState(
        generation=generation, spec={"endpoints": [{"name": "m"}]}, endpoints=(endpoint,)
    )


def test_a_new_home_has_generation_0(tmp_path: Path) -> None:
    assert FileStore(tmp_path / "state.json").load() == DesiredState()


def test_what_was_saved_is_loaded_by_the_next_control_plane(tmp_path: Path) -> None:
    FileStore(tmp_path / "state.json").save(state(1))

    assert FileStore(tmp_path / "state.json").load() == state(1)
    assert (tmp_path / "state.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("generation", [0, 1, 3])
def test_a_generation_that_does_not_follow_is_refused(tmp_path: Path, generation: int) -> None:
    store = FileStore(tmp_path / "state.json")
    store.save(state(1))

    with pytest.raises(ConflictError, match="generation 1"):
        store.save(state(generation))


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'{"format": 1}', b'{"format": 9, "state": {}}', b"\xff"]
)
def test_a_damaged_state_is_told_and_left_alone(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(data)

    with pytest.raises(FailedPreconditionError, match=r"state\.json"):
        FileStore(path).load()
    assert path.read_bytes() == data


def test_a_crash_while_saving_leaves_the_old_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FileStore(tmp_path / "state.json")
    store.save(state(1))

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FailedPreconditionError, match="No space"):
        store.save(state(2))
    monkeypatch.undo()

    assert FileStore(tmp_path / "state.json").load() == state(1)
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]
    store.save(state(2))  # the failure did not count as a generation


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_atomic(path, b"long content")
    write_atomic(path, b"short", durable=False)

    assert path.read_bytes() == b"short"


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
