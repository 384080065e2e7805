import dataclasses
import errno
import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec
import pytest

import headrace.registry.registry as registry_module
from headrace.core import (
    ArtifactCorruptError,
    CodeNotAllowedError,
    FailedPreconditionError,
    InvalidArgumentError,
    ModelNotFoundError,
    RowIndependence,
    UnavailableError,
    UnsupportedModelError,
)
from headrace.core.files import exclusive
from headrace.registry import ModelVersion, Registry, VersionNotFoundError
from headrace.registry.index import decode_version, encode_version
from headrace.registry.signing import statement

MakeFile = Callable[..., Path]


class Turnable(Protocol):
    seconds: float


def flip_bit(file: Path) -> None:
    file.chmod(0o644)
    data = bytearray(file.read_bytes())
    data[0] ^= 1
    file.write_bytes(data)


def temporary(registry: Registry) -> list[Path]:
    directory = registry.home / "artifacts" / "tmp"
    return list(directory.iterdir()) if directory.exists() else []


def test_opening_and_listing_create_nothing(registry: Registry) -> None:
    assert registry.list() == []
    assert registry.problems() == []
    assert not registry.home.exists()


def test_a_pushed_version_says_what_when_by_whom_and_whence(
    registry: Registry, make_file: MakeFile, clock: Turnable
) -> None:
    path = make_file("weights")
    version = registry.push(
        "fraud",
        path,
        by="ann",
        labels={"prob": ["no", "yes"]},
        metadata={"commit": "abc"},
    )

    assert registry.get("fraud") == registry.get("fraud:1") == version
    assert version.reference == "fraud:1"
    assert version.digest.startswith("sha256:")
    assert (version.size_bytes, version.filename, version.runtime) == (7, "model.txt", "text")
    assert version.created_at.timestamp() == clock.seconds
    assert (version.created_by, version.source) == ("ann", str(path))
    assert version.labels == {"prob": ("no", "yes")}
    assert version.metadata == {"commit": "abc"}
    assert version.signature.input("x") is not None


def test_source_runtime_and_user_are_found_out_if_not_given(
    registry: Registry, make_file: MakeFile
) -> None:
    version = registry.push("a", make_file(), runtime="other", source="s3://bucket/a")

    assert (version.runtime, version.source) == ("other", "s3://bucket/a")
    assert version.created_by


def test_a_user_without_a_name_is_told_by_number(
    registry: Registry, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 77)

    assert registry.push("a", make_file()).created_by == f"uid {2**31 - 77}"


def test_a_path_leads_to_read_only_content(registry: Registry, make_file: MakeFile) -> None:
    path = registry.path(registry.push("a", make_file("weights")))

    assert path.read_text() == "weights"
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o555


def test_why_rows_are_independent_is_kept_and_unknown_of_versions_that_do_not_say(
    registry: Registry, make_file: MakeFile
) -> None:
    made = registry.push("m", make_file())
    signature = dataclasses.replace(
        made.signature,
        batched=False,
        row_independence=RowIndependence.UNPROVEN,
        row_reason="ReduceMean 'mean' reduces axis 0",
    )
    told = msgspec.structs.replace(made, signature=signature)
    assert decode_version(encode_version(told), location="here") == told

    older = json.loads(encode_version(told))
    del older["signature"]["row_independence"], older["signature"]["row_reason"]
    read = decode_version(json.dumps(older).encode(), location="here").signature
    assert (read.row_independence, read.row_reason) == (None, "")
    assert statement(made) != statement(told)  # `batched` is signed; why is not
    assert statement(decode_version(json.dumps(older).encode(), location="here")) == statement(told)


def test_versions_count_up_and_the_newest_is_the_default(
    registry: Registry, make_file: MakeFile
) -> None:
    for content in "abcdefghijk":
        registry.push("m", make_file(content))

    assert registry.get("m").version == "11"
    assert [version.version for version in registry.list("m")] == [str(n) for n in range(1, 12)]


def test_a_home_that_a_push_makes_is_for_its_owner_only(
    registry: Registry, make_file: MakeFile
) -> None:
    registry.push("m", make_file())

    assert stat.S_IMODE(registry.home.stat().st_mode) == 0o700


def test_the_same_content_pushed_again_is_the_same_version(
    registry: Registry, make_file: MakeFile
) -> None:
    first = registry.push("m", make_file("one"))
    registry.push("m", make_file("two"))

    assert registry.push("m", make_file("one", "renamed.txt")) == first
    assert len(registry.list()) == 2


@pytest.mark.parametrize("change", [{"labels": {"prob": ["a", "b"]}}, {"runtime": "other"}])
def test_other_labels_or_another_runtime_make_another_version(
    registry: Registry, make_file: MakeFile, change: dict[str, object]
) -> None:
    registry.push("m", make_file())

    assert registry.push("m", make_file(), **change).version == "2"  # type: ignore[arg-type]  # a table of keywords


def test_two_names_share_one_artifact(registry: Registry, make_file: MakeFile) -> None:
    a = registry.push("a", make_file("same", "a.txt"))
    b = registry.push("b", make_file("same", "b.txt"))

    assert registry.path(a) == registry.path(b)
    registry.remove("a", "1")
    assert registry.gc().artifacts == ()
    registry.verify(b)


def test_a_directory_keeps_its_files_and_leaves_out_what_tools_put_there(
    registry: Registry, tmp_path: Path
) -> None:
    source = tmp_path / "dir"
    (source / "deep" / "er").mkdir(parents=True)
    (source / "__pycache__").mkdir()
    (source / "a.txt").write_text("a")
    (source / "deep" / "er" / "b.txt").write_text("b")
    (source / "link.txt").symlink_to("a.txt")
    (source / "__pycache__" / "c.pyc").write_text("c")
    version = registry.push("m", source)
    path = registry.path(version)

    assert [file.path for file in version.files] == ["a.txt", "deep/er/b.txt", "link.txt"]
    assert (path.name, (path / "link.txt").read_text()) == ("dir", "a")
    assert not (path / "link.txt").is_symlink()
    registry.verify(version)


def test_a_bad_model_is_refused_by_its_own_path_and_leaves_nothing(
    registry: Registry, make_file: MakeFile
) -> None:
    path = make_file("bad")

    with pytest.raises(UnsupportedModelError, match=f"^{path}: is bad$"):
        registry.push("m", path)
    assert registry.list() == []
    assert temporary(registry) == []
    assert not (registry.home / "artifacts" / "sha256").exists()


@pytest.mark.parametrize("name", ["../up", "", "a/b", ".hidden", "a:1", "a\0b"])
def test_a_name_that_could_leave_the_directory_is_refused(
    registry: Registry, make_file: MakeFile, name: str
) -> None:
    with pytest.raises(InvalidArgumentError, match="not allowed"):
        registry.push(name, make_file())
    with pytest.raises(InvalidArgumentError, match="not allowed"):
        registry.list(name)


def test_labels_have_to_fit_an_output(registry: Registry, make_file: MakeFile) -> None:
    with pytest.raises(InvalidArgumentError, match="'score', but the model has 'prob'"):
        registry.push("m", make_file(), labels={"score": ["a"]})
    with pytest.raises(InvalidArgumentError, match="2 classes, but the labels have 3 names"):
        registry.push("m", make_file(), labels={"prob": ["a", "b", "c"]})


def test_a_registry_for_reading_does_not_push(tmp_path: Path, make_file: MakeFile) -> None:
    with pytest.raises(FailedPreconditionError, match="inspect_model"):
        Registry(tmp_path).push("m", make_file())


def test_progress_ends_at_the_whole_size(registry: Registry, make_file: MakeFile) -> None:
    seen: list[tuple[int, int]] = []
    registry.push("m", make_file("12345"), progress=lambda done, total: seen.append((done, total)))

    assert seen[-1] == (5, 5)


def test_what_is_not_there_is_answered_with_what_is(
    registry: Registry, make_file: MakeFile
) -> None:
    registry.push("fraud", make_file())

    with pytest.raises(VersionNotFoundError, match="no model 'frod'; there are: fraud"):
        registry.get("frod")
    with pytest.raises(ModelNotFoundError, match="no version 7 of model 'fraud'; there are: 1"):
        registry.get("fraud:7")
    with pytest.raises(InvalidArgumentError, match="whole number"):
        registry.get("fraud:latest")


def test_a_number_with_zeros_before_it_is_the_same_number(
    registry: Registry, make_file: MakeFile
) -> None:
    registry.push("m", make_file())

    assert registry.get("m:001").version == "1"


def test_a_flipped_bit_is_found_and_named(registry: Registry, tmp_path: Path) -> None:
    source = tmp_path / "dir"
    source.mkdir()
    (source / "a.txt").write_text("aa")
    (source / "b.txt").write_text("bb")
    version = registry.push("m", source)
    flip_bit(registry.path(version) / "b.txt")

    expected = version.files[1].sha256
    with pytest.raises(ArtifactCorruptError, match=rf"m:1 .*b\.txt: expected sha256 {expected}, f"):
        registry.verify(version)


def test_missing_and_additional_files_are_found(registry: Registry, tmp_path: Path) -> None:
    source = tmp_path / "dir"
    source.mkdir()
    (source / "a.txt").write_text("aa")
    (source / "b.txt").write_text("bb")
    version = registry.push("m", source)
    stored = registry.path(version)
    stored.chmod(0o755)
    (stored / "a.txt").rename(stored / "c.txt")

    with pytest.raises(ArtifactCorruptError, match=r"unexpected file c.txt; a.txt is missing"):
        registry.verify(version)


def test_a_lost_artifact_is_named(registry: Registry, make_file: MakeFile) -> None:
    version = registry.push("m", make_file())
    directory = registry.path(version).parent
    directory.chmod(0o755)
    shutil.rmtree(directory)

    with pytest.raises(ArtifactCorruptError, match="m:1: its artifact is missing"):
        registry.path(version)


def test_pushing_again_heals_a_damaged_artifact(registry: Registry, make_file: MakeFile) -> None:
    version = registry.push("m", make_file("good", "first.txt"))
    flip_bit(registry.path(version))

    assert registry.push("m", make_file("good", "second.txt")) == version
    registry.verify(version)


def test_a_version_in_use_stays(registry: Registry, make_file: MakeFile) -> None:
    registry.push("m", make_file())

    with pytest.raises(FailedPreconditionError, match="m:1 is being served"):
        registry.remove("m", "1", in_use={"m:1"})
    assert registry.get("m:1").version == "1"


def test_a_removed_number_is_never_given_again(registry: Registry, make_file: MakeFile) -> None:
    registry.push("m", make_file("one"))
    registry.push("m", make_file("two"))
    registry.remove("m", "2", in_use={"m:1"})

    assert registry.push("m", make_file("two")).version == "3"
    with pytest.raises(VersionNotFoundError):
        registry.get("m:2")


def test_a_name_without_versions_is_gone_until_the_next_push(
    registry: Registry, make_file: MakeFile
) -> None:
    registry.push("m", make_file())
    registry.remove("m", "1")

    assert registry.list() == []
    with pytest.raises(VersionNotFoundError):
        registry.get("m")
    assert registry.push("m", make_file()).version == "2"


def test_removing_what_is_not_there_is_an_error(registry: Registry) -> None:
    with pytest.raises(VersionNotFoundError):
        registry.remove("m", "1")
    with pytest.raises(InvalidArgumentError):
        registry.remove("m", "../1")


def test_gc_deletes_what_no_version_refers_to(registry: Registry, make_file: MakeFile) -> None:
    gone = registry.push("m", make_file("12345"))
    kept = registry.push("m", make_file("other"))
    registry.remove("m", "1")

    assert registry.gc(in_use=[gone.digest]).artifacts == ()
    report = registry.gc()
    assert (report.artifacts, report.freed_bytes) == ((gone.digest,), 5)
    assert str(report) == "1 artifacts and 0 temporary directories, 5 bytes"
    registry.verify(kept)
    with pytest.raises(ArtifactCorruptError, match="missing"):
        registry.path(gone)


@pytest.fixture
def versions(registry: Registry, make_file: MakeFile) -> tuple[ModelVersion, ModelVersion]:
    """The file `large`, and a directory with it and another file."""
    large = make_file("weights", "large")
    first = registry.push("m", large)
    make_file("1", "a")
    second = registry.push("m", large.parent)
    assert first.digest != second.digest
    return first, second


def test_versions_with_an_equal_file_store_it_once(
    registry: Registry, make_file: MakeFile, versions: tuple[ModelVersion, ModelVersion]
) -> None:
    make_file("2", "a")
    third = registry.push("n", make_file("weights", "large").parent)
    paths = [registry.path(version) for version in (*versions, third)]

    assert len({path.stat().st_ino for path in (paths[0], *(p / "large" for p in paths[1:]))}) == 1
    assert len({(path / "a").stat().st_ino for path in paths[1:]}) == 2
    for version in (*versions, third):
        registry.verify(version)


def test_gc_counts_a_file_of_several_versions_when_it_is_deleted(
    registry: Registry, versions: tuple[ModelVersion, ModelVersion]
) -> None:
    registry.remove("m", "1")
    assert registry.gc().freed_bytes == 0
    registry.verify(versions[1])
    registry.remove("m", "2")
    assert registry.gc().freed_bytes == versions[1].size_bytes


def test_a_damaged_file_is_not_shared(
    registry: Registry, make_file: MakeFile, versions: tuple[ModelVersion, ModelVersion]
) -> None:
    flip_bit(registry.path(versions[0]))
    make_file("2", "a")

    registry.verify(registry.push("m", make_file("weights", "large").parent))


def test_a_file_that_cannot_be_linked_is_stored_again(
    registry: Registry, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    first = registry.push("m", make_file("weights", "large"))
    second = registry.push("m", make_file("1", "a").parent)

    registry.verify(second)
    assert not registry.path(first).samefile(registry.path(second) / "large")


def test_gc_takes_old_temporary_directories_only(
    registry: Registry, make_file: MakeFile, clock: Turnable
) -> None:
    registry.push("m", make_file())
    left = registry.home / "artifacts" / "tmp" / "crashed"
    left.mkdir()
    (left / "half").write_text("1234567")
    clock.seconds = left.stat().st_mtime + 100

    assert registry.gc().temporary == 0
    report = registry.gc(temporary_age_s=50)
    assert (report.temporary, report.freed_bytes) == (1, 7)
    assert temporary(registry) == []


def test_gc_on_an_empty_home_does_nothing(registry: Registry) -> None:
    assert registry.gc().artifacts == ()


def test_a_damaged_index_file_is_named_and_hides_no_other(
    registry: Registry, make_file: MakeFile
) -> None:
    registry.push("m", make_file("one"))
    kept = registry.push("n", make_file("two"))
    file = registry.home / "registry" / "m" / "1.json"
    file.chmod(0o644)
    file.write_text('{"schema": 1, "name"')

    assert registry.list() == [kept]
    assert [str(file) in str(problem) for problem in registry.problems()] == [True]
    with pytest.raises(ArtifactCorruptError, match=r"1\.json is damaged"):
        registry.get("m")
    with pytest.raises(ArtifactCorruptError, match=r"nothing was deleted: .*1\.json"):
        registry.gc()
    assert registry.push("m", make_file("one")).version == "2"


def test_an_index_file_of_a_newer_headrace_is_not_guessed_at(
    registry: Registry, make_file: MakeFile
) -> None:
    registry.push("m", make_file())
    file = registry.home / "registry" / "m" / "1.json"
    file.chmod(0o644)
    file.write_text('{"schema": 99}')

    with pytest.raises(ArtifactCorruptError, match="newer Headrace"):
        registry.get("m")


def test_an_index_file_in_the_wrong_place_is_damage(
    registry: Registry, make_file: MakeFile
) -> None:
    registry.push("m", make_file())
    directory = registry.home / "registry" / "m"
    (directory / "1.json").rename(directory / "5.json")

    with pytest.raises(ArtifactCorruptError, match="describes m:1"):
        registry.get("m:5")


def test_a_full_disk_is_said_and_leaves_nothing(
    registry: Registry, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(registry_module, "copy_content", full)

    with pytest.raises(FailedPreconditionError, match=r"No space left .* bytes are free, .*gc"):
        registry.push("m", make_file())
    assert temporary(registry) == []


def test_a_home_that_is_a_file_is_said(tmp_path: Path, make_file: MakeFile) -> None:
    home = tmp_path / "home"
    home.write_text("")

    with pytest.raises(FailedPreconditionError, match=r"cannot store .*Not a directory .*home"):
        Registry(home, lambda *_: ("x", None)).push("m", make_file())  # type: ignore[arg-type]  # never called


def test_a_crash_before_the_index_is_written_leaves_no_version(
    registry: Registry, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("headrace.registry.index.Index.write", crash)
        with pytest.raises(KeyboardInterrupt):
            registry.push("m", make_file("one"))
    assert registry.list() == []

    version: ModelVersion = registry.push("m", make_file("one"))
    assert version.version == "1"
    registry.verify(version)


def test_a_hidden_source_file_gets_a_name_that_shows(
    registry: Registry, make_file: MakeFile
) -> None:
    assert registry.push("m", make_file("x", ".model.txt")).filename == "model.txt"


def test_a_model_that_runs_code_is_stored_only_where_that_is_allowed(
    registry: Registry, make_file: MakeFile
) -> None:
    path = make_file("code")
    with pytest.raises(CodeNotAllowedError, match=f"^{path}: a model of runtime 'text' runs"):
        registry.push("m", path)
    assert registry.list() == []
    stored = registry.push("m", path, allow_code=True)
    with pytest.raises(CodeNotAllowedError):
        registry.push("m", path)

    assert stored.executes_code
    assert registry.get("m:1").runs_code


@pytest.mark.parametrize("runtime", ["onnx", "python"])
def test_a_version_of_older_times_is_known_by_its_runtime(
    registry: Registry, make_file: MakeFile, runtime: str
) -> None:
    stored = registry.push("m", make_file(), runtime=runtime)
    executes = msgspec.structs.replace(stored, runs_code=None).executes_code

    assert executes is (runtime == "python")


def test_a_snapshot_has_the_registry_of_its_moment_although_content_is_collected(
    registry: Registry, make_file: MakeFile
) -> None:
    old = registry.push("m", make_file("old"))
    at_the_moment: list[Path] = []

    def prepare() -> None:
        at_the_moment.extend(registry.home.glob("registry/m/*.json"))
        lock = registry.home / "registry" / ".lock"
        with pytest.raises(UnavailableError), exclusive(lock, timeout_s=0.0):
            """Nobody pushes meanwhile."""

    with registry.snapshot(prepare) as folder:
        registry.push("m", make_file("new"))
        registry.remove("m", "1")
        registry.gc(temporary_age_s=1e12)  # the clock of these tests is far ahead of the disk
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.json"))
        copy = Registry(folder)
        copy.verify(copy.get("m:1"))
        with pytest.raises(ArtifactCorruptError, match="missing"):
            registry.path(old)

    assert len(at_the_moment) == 1
    assert names == ["registry/m/1.json"]
    assert not folder.exists()
