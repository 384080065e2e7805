import hashlib
import os
from pathlib import Path

import pytest

from headrace.core import (
    ArtifactCorruptError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from headrace.registry import SharedStore, VersionNotFoundError
from headrace.registry.fetch import Fetched, check_model, check_reference, fetch_model
from tests.unit.registry.test_shared import Hosts


@pytest.fixture
def hosts(tmp_path: Path) -> Hosts:
    return Hosts(tmp_path)


def fetched(hosts: Hosts, reference: str, output: Path, **options: float) -> Fetched:
    return fetch_model(SharedStore(hosts.bucket), reference, output, **options)  # type: ignore[arg-type]  # deadline


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if not path.name.startswith("."))


def test_a_version_and_its_digest_give_the_same_file(hosts: Hosts, tmp_path: Path) -> None:
    version = hosts.registry().push("m", hosts.file("a"))

    by_name = fetched(hosts, "m:1", tmp_path / "x")
    by_digest = fetched(hosts, version.digest, tmp_path / "y")

    assert by_name.path == str(tmp_path / "x" / "a.txt")
    assert Path(by_name.path).read_text() == Path(by_digest.path).read_text() == "a"
    assert by_name.digest == by_digest.digest == version.digest
    assert names(tmp_path / "x") == ["a.txt"]
    assert by_name.is_new


def test_what_is_there_and_whole_is_not_fetched_again(hosts: Hosts, tmp_path: Path) -> None:
    hosts.registry().push("m", hosts.file("a"))
    first = fetched(hosts, "m:1", tmp_path / "x")
    before = Path(first.path).stat()
    for key in [key for key in hosts.bucket.objects if "/0/" in key]:
        hosts.bucket.delete([key])

    again = fetched(hosts, "m:1", tmp_path / "x")

    assert not again.is_new
    assert Path(again.path).stat().st_ino == before.st_ino


def test_what_is_there_and_different_is_replaced(hosts: Hosts, tmp_path: Path) -> None:
    hosts.registry().push("m", hosts.file("a"))
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.txt").write_text("other")
    (tmp_path / "x" / "theirs").write_text("theirs")

    assert fetched(hosts, "m:1", tmp_path / "x").is_new

    assert (tmp_path / "x" / "a.txt").read_text() == "a"
    assert names(tmp_path / "x") == ["a.txt", "theirs"]


def test_a_directory_takes_the_place_of_another(hosts: Hosts, tmp_path: Path) -> None:
    model = tmp_path / "net"
    (model / "sub").mkdir(parents=True)
    (model / "sub" / "w").write_text("weights")
    (model / "net.txt").write_text("net")
    hosts.registry().push("m", model)
    former = tmp_path / "x" / "net"
    former.mkdir(parents=True)
    (former / "old").write_text("old")

    found = fetched(hosts, "m:1", tmp_path / "x")

    files = sorted(p.relative_to(found.path).as_posix() for p in Path(found.path).rglob("*"))
    assert files == ["net.txt", "sub", "sub/w"]
    assert not fetched(hosts, "m:1", tmp_path / "x").is_new


def test_what_a_killed_fetch_left_is_taken_away(hosts: Hosts, tmp_path: Path) -> None:
    hosts.registry().push("m", hosts.file("a"))
    left = tmp_path / "x" / ".headrace-fetch-abc"
    left.mkdir(parents=True)
    (left / "half").write_text("half")

    fetched(hosts, "m:1", tmp_path / "x")

    assert not left.exists()


def test_damaged_content_is_not_put_there(hosts: Hosts, tmp_path: Path) -> None:
    version = hosts.registry().push("m", hosts.file("a"))
    (key,) = hosts.files_of(version.digest)
    hosts.bucket.upload(key, iter([b"b"]), 1)

    with pytest.raises(ArtifactCorruptError, match=key):
        fetched(hosts, "m:1", tmp_path / "x")

    assert names(tmp_path / "x") == []
    assert not list((tmp_path / "x").glob(".headrace-fetch-*"))


@pytest.mark.parametrize("reference", ["m", "m:", ":1", "sha256:abc", "m:x", "../m:1", "m:1:2"])
def test_what_names_nothing_is_refused(hosts: Hosts, tmp_path: Path, reference: str) -> None:
    with pytest.raises(InvalidArgumentError):
        fetched(hosts, reference, tmp_path / "x")


def test_what_is_not_in_the_store_is_named(hosts: Hosts, tmp_path: Path) -> None:
    hosts.registry().push("m", hosts.file("a"))
    hosts.registry().push("m", hosts.file("b"))
    hosts.registry().remove("m", "1")

    with pytest.raises(VersionNotFoundError, match=r"no version 1 of model 'm'; there are: 2"):
        fetched(hosts, "m:1", tmp_path / "x")
    with pytest.raises(NotFoundError, match="no content with digest"):
        fetched(hosts, "sha256:" + "ab" * 32, tmp_path / "x")


def test_a_deadline_ends_a_fetch_and_leaves_nothing(hosts: Hosts, tmp_path: Path) -> None:
    hosts.registry().push("m", hosts.file("a"))

    with pytest.raises(DeadlineExceededError, match="1 of 1 bytes"):
        fetch_model(
            SharedStore(hosts.bucket),
            "m:1",
            tmp_path / "x",
            deadline=5.0,
            monotonic=lambda: 6.0,
        )

    assert names(tmp_path / "x") == []


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc/self").exists(), reason="needs /proc")
def test_a_mounted_model_is_checked_in_place(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"model")
    digest = f"sha256:{hashlib.sha256(b'model').hexdigest()}"

    assert check_model(digest, model).path == str(model)
    model.write_bytes(b"other")
    with pytest.raises(ArtifactCorruptError, match=f"not {digest}"):
        check_model(digest, model)
    with pytest.raises(InvalidArgumentError, match="does not exist"):
        check_model(digest, tmp_path / "missing")


def test_a_place_that_cannot_be_written_is_told(hosts: Hosts) -> None:
    hosts.registry().push("m", hosts.file("a"))

    with pytest.raises(FailedPreconditionError, match="cannot fetch m:1 to /proc/self/x"):
        fetched(hosts, "m:1", Path("/proc/self/x"))


def test_a_store_names_no_hidden_file(hosts: Hosts, tmp_path: Path) -> None:
    version = hosts.registry().push("m", hosts.file("a"))
    key = f"{version.digest.replace(':', '/')}/manifest.json"
    data, etag = hosts.bucket.read(key) or (b"", "")
    hosts.bucket.replace(key, data.replace(b'"a.txt"', b'".bashrc"'), etag)
    (tmp_path / ".bashrc").write_text("mine")

    with pytest.raises(ArtifactCorruptError, match="begin with a dot"):
        fetched(hosts, "m:1", tmp_path)

    assert (tmp_path / ".bashrc").read_text() == "mine"


@pytest.mark.parametrize("reference", ["m:1", "sha256:3", f"sha256:{'6c' * 32}"])
def test_versions_and_digests_are_references(reference: str) -> None:
    check_reference(reference)


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("m", "neither NAME:VERSION nor sha256:DIGEST"),
        ("sha256:6c41", "64 hexadecimal digits"),
        ("sha256:", "64 hexadecimal digits"),
        ("m:latest", "whole number"),
        ("m n:1", "m n"),
        ("", "neither"),
    ],
)
def test_what_is_neither_is_refused_with_what_it_should_be(reference: str, told: str) -> None:
    with pytest.raises(InvalidArgumentError, match=told):
        check_reference(reference)
