import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.core import (
    ArtifactCorruptError,
    FailedPreconditionError,
    NotFoundError,
    SystemClock,
    UnavailableError,
)
from headrace.registry import Registry, SharedStore, StoredFile, VersionNotFoundError
from headrace.registry.bucket import MAX_READ_BYTES, FileBucket, ObjectInfo, ObjectStore
from headrace.registry.shared import GRACE_S, SharedIndex
from headrace.registry.shared_content import (
    TOMBSTONE_AGE_S,
    ArtifactManifest,
    decode_manifest,
    encode_manifest,
    manifest_key,
)
from tests.unit.registry.conftest import FixedClock, inspect_text
from tests.unit.registry.memory_bucket import MemoryBucket

DAY_S = 86_400.0


class Hosts:
    """Homes on one store, whose clocks agree."""

    def __init__(self, directory: Path) -> None:
        self.clock = FixedClock()
        # A fixed day would be in the past of files that are staged now, whose age counts in homes.
        self.clock.seconds = SystemClock().now()
        self.bucket = MemoryBucket(self.clock.now)
        self._directory = directory

    def file(self, content: str) -> Path:
        path = self._directory / f"{content}.txt"
        path.write_text(content)
        return path

    def tree(self, content: str) -> Path:
        """A model of two files: what happens between them counts too."""
        path = self._directory / f"{content}-tree"
        path.mkdir(exist_ok=True)
        (path / "1.txt").write_text(content)
        (path / "2.txt").write_text(f"more {content}")
        return path

    def text(self, reference: str) -> str:
        """What another home has of a tree that was pushed."""
        registry = self.registry("reader")
        path = registry.path(registry.get(reference))
        content = (path / "1.txt").read_text()
        assert (path / "2.txt").read_text() == f"more {content}"
        return content

    def registry(self, name: str = "home", bucket: ObjectStore | None = None) -> Registry:
        shared = SharedStore(bucket or self.bucket, clock=self.clock)
        return Registry(self._directory / name, inspect_text, clock=self.clock, shared=shared)

    def files_of(self, digest: str) -> list[str]:
        prefix = f"sha256/{digest.removeprefix('sha256:')}/"
        keys = (key for key in self.bucket.objects if key.startswith(prefix))
        return [key for key in keys if not key.endswith("manifest.json")]


@pytest.fixture
def hosts(tmp_path: Path) -> Hosts:
    return Hosts(tmp_path)


def test_gc_deletes_what_no_version_refers_to_once_its_grace_is_over(hosts: Hosts) -> None:
    registry = hosts.registry()
    kept, gone = registry.push("m", hosts.file("a")), registry.push("m", hosts.file("b"))
    registry.remove("m", "2")

    hosts.clock.seconds += GRACE_S - 60
    assert registry.gc().artifacts == (gone.digest,)  # of the home, which has no grace
    assert len(hosts.files_of(gone.digest)) == 1

    hosts.clock.seconds += 120
    assert registry.gc().artifacts == (gone.digest,)
    assert hosts.files_of(gone.digest) == []
    assert len(hosts.files_of(kept.digest)) == 1
    assert hosts.registry("other").path(kept).read_text() == "a"


def test_gc_deletes_what_a_killed_push_left(hosts: Hosts) -> None:
    digits = "ab" * 32
    hosts.bucket.upload(f"sha256/{digits}/0/{digits}", iter([b"half"]), 4)

    assert hosts.registry().gc().artifacts == ()
    hosts.clock.seconds += GRACE_S + 1
    report = hosts.registry().gc()

    assert report.artifacts == (f"sha256:{digits}",)
    assert report.freed_bytes == 4
    assert hosts.files_of(digits) == []


def test_a_grace_is_an_hour_at_least(hosts: Hosts) -> None:
    registry = hosts.registry()
    version = registry.push("m", hosts.file("a"))
    registry.remove("m", "1")
    hosts.clock.seconds += 3500

    registry.gc(grace_s=0.0)

    assert len(hosts.files_of(version.digest)) == 1


def test_content_that_was_deleted_can_be_pushed_again(hosts: Hosts) -> None:
    registry = hosts.registry()
    registry.push("m", hosts.file("a"))
    registry.remove("m", "1")
    hosts.clock.seconds += GRACE_S + 1
    registry.gc()

    again = registry.push("m", hosts.file("a"))

    assert again.reference == "m:2"
    assert hosts.registry("other").path(again).read_text() == "a"


def test_a_tombstone_goes_in_the_end(hosts: Hosts) -> None:
    registry = hosts.registry()
    version = registry.push("m", hosts.file("a"))
    registry.remove("m", "1")
    hosts.clock.seconds += GRACE_S + 1
    registry.gc()
    assert manifest_key(version.digest) in hosts.bucket.objects

    hosts.clock.seconds += TOMBSTONE_AGE_S + 2 * GRACE_S
    registry.gc()

    assert manifest_key(version.digest) not in hosts.bucket.objects


def test_gc_deletes_nothing_where_a_version_cannot_be_read(hosts: Hosts) -> None:
    registry = hosts.registry()
    registry.push("m", hosts.file("a"))
    hosts.bucket.create("registry/m/2.json", b"{")
    hosts.clock.seconds += GRACE_S + 1

    with pytest.raises(ArtifactCorruptError, match=r"nothing was deleted.*registry/m/2\.json"):
        hosts.registry("other").gc()


def test_a_removed_version_cannot_be_found(hosts: Hosts) -> None:
    hosts.registry("one").push("m", hosts.file("a"))
    two = hosts.registry("two")
    two.get("m:1")
    hosts.registry("one").remove("m", "1")

    with pytest.raises(VersionNotFoundError):
        two.get("m:1")


class AwayBucket(MemoryBucket):
    """Does not answer while `is_away`."""

    is_away = False
    asked = 0

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self.asked += 1
        if self.is_away:
            raise UnavailableError("cannot list: nobody there")
        return super().list(prefix)


def test_what_a_home_has_seen_is_there_without_the_store_and_nothing_else_is_denied(
    hosts: Hosts,
) -> None:
    bucket = AwayBucket(hosts.clock.now)
    registry = hosts.registry("one", bucket)
    version = registry.push("m", hosts.file("a"))
    bucket.is_away = True

    assert registry.get("m:1") == version
    assert registry.list() == [version]
    assert registry.path(version).read_text() == "a"
    for reference in ("m:2", "other:1", "m"):
        with pytest.raises(UnavailableError, match="nobody there"):
            registry.get(reference)
    with pytest.raises(UnavailableError):
        registry.push("m", hosts.file("b"))
    with pytest.raises(UnavailableError):
        registry.remove("m", "1")


def test_a_store_that_is_away_is_not_asked_for_each_look(hosts: Hosts) -> None:
    bucket = AwayBucket(hosts.clock.now)
    registry = hosts.registry("one", bucket)
    registry.push("m", hosts.file("a"))
    bucket.is_away = True
    registry.list()
    asked = bucket.asked

    registry.list()
    registry.problems()

    assert bucket.asked == asked


class Careless(MemoryBucket):
    """Writes over what is there."""

    def __init__(self, now: Callable[[], float], heeds: str) -> None:
        super().__init__(now)
        self._heeds = heeds

    def create(self, key: str, data: bytes) -> bool:
        if self._heeds == "create":
            return super().create(key, data)
        self._put(key, data)
        return True

    def replace(self, key: str, data: bytes, etag: str) -> bool:
        del etag
        self._put(key, data)
        return True


@pytest.mark.parametrize(
    ("heeds", "header"), [("nothing", "If-None-Match"), ("create", "If-Match")]
)
def test_a_store_that_writes_over_others_is_refused_before_anything_is_pushed(
    hosts: Hosts, heeds: str, header: str
) -> None:
    bucket = Careless(hosts.clock.now, heeds)

    with pytest.raises(FailedPreconditionError, match=header):
        hosts.registry("one", bucket).push("m", hosts.file("a"))

    assert not [key for key in bucket.objects if not key.startswith("registry/.")]


def lone(**changes: object) -> bytes:
    fields: dict[str, object] = {
        "digest": "sha256:" + "ab" * 32,
        "filename": "m.onnx",
        "size_bytes": 3,
        "files": (StoredFile(path="", size_bytes=3, sha256="ab" * 32),),
    }
    return encode_manifest(ArtifactManifest(**(fields | changes)))  # type: ignore[arg-type]  # some are wrong on purpose


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b'{"digest":"\xff"}',
        b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        lone(generation=-1),
        lone(generation=2**63),
        lone(filename="../m.onnx"),
        lone(filename=".."),
        lone(filename=""),
        lone(filename="a/b"),
        lone(filename="a\0b"),
        lone(files=()),
        lone(size_bytes=4),
        lone(digest="sha256:" + "cd" * 32),
        lone(files=(StoredFile(path="", size_bytes=3, sha256="../../x"),)),
        lone(files=(StoredFile(path="", size_bytes=-3, sha256="ab" * 32),)),
        lone(files=(StoredFile(path="../../etc/x", size_bytes=3, sha256="ab" * 32),)),
        lone(files=(StoredFile(path="/etc/x", size_bytes=3, sha256="ab" * 32),)),
        lone(files=(StoredFile(path="a//b", size_bytes=3, sha256="ab" * 32),)),
        lone(
            files=(
                StoredFile(path="a", size_bytes=1, sha256="ab" * 32),
                StoredFile(path="a/b", size_bytes=2, sha256="ab" * 32),
            )
        ),
    ],
)
def test_a_manifest_that_lies_is_damaged(data: bytes) -> None:
    with pytest.raises(ArtifactCorruptError, match="manifest is damaged"):
        decode_manifest(data, "sha256:" + "ab" * 32, location="manifest")  # type: ignore[arg-type]  # a digest


@settings(max_examples=200)
@given(st.binary(max_size=300))
def test_no_bytes_are_taken_for_a_manifest_of_something(data: bytes) -> None:
    with pytest.raises(ArtifactCorruptError):
        decode_manifest(data, "sha256:" + "ab" * 32, location="manifest")  # type: ignore[arg-type]  # a digest


def test_what_others_put_into_the_store_is_left_alone(hosts: Hosts) -> None:
    content = f"sha256/{'cd' * 32}"
    odd = (content, f"{content}/", f"{content}/{2**70}/x", f"{content}/1/x", "sha256/x/y")
    for key in ("registry/readme.txt", "registry/m/notes.json", "registry/-/1.json", *odd):
        hosts.bucket.create(key, b"theirs")
    registry = hosts.registry()
    registry.push("m", hosts.file("a"))
    hosts.clock.seconds += 9 * DAY_S

    registry.gc()

    assert [version.reference for version in registry.list()] == ["m:1"]
    assert hosts.bucket.read("sha256/x/y") is not None


def test_an_entry_of_another_version_is_damaged(hosts: Hosts) -> None:
    registry = hosts.registry()
    registry.push("m", hosts.file("a"))
    entry = hosts.bucket.read("registry/m/1.json")
    assert entry is not None
    hosts.bucket.create("registry/other/1.json", entry[0])

    fresh = hosts.registry("fresh")
    assert [str(p) for p in fresh.problems()] == [
        "s3://models/unit/registry/other/1.json is damaged: it describes m:1"
    ]
    assert [version.reference for version in fresh.list()] == ["m:1"]


def test_content_that_the_store_lost_is_named(hosts: Hosts) -> None:
    version = hosts.registry("one").push("m", hosts.file("a"))
    hosts.bucket.delete([manifest_key(version.digest)])

    with pytest.raises(NotFoundError, match=f"holds no content with digest {version.digest}"):
        hosts.registry("two").path(version)


def test_a_home_can_be_made_anew_from_the_store(hosts: Hosts, tmp_path: Path) -> None:
    version = hosts.registry("one").push("m", hosts.file("a"))
    for path in (tmp_path / "one").rglob("*"):
        path.chmod(0o755)
    shutil.rmtree(tmp_path / "one")

    assert hosts.registry("one").path(version).read_text() == "a"


@pytest.mark.parametrize(
    "data", [b'{"name":"\xff"}', b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"]
)
def test_an_entry_that_cannot_be_read_is_a_problem_and_stops_no_other(
    hosts: Hosts, data: bytes
) -> None:
    hosts.registry().push("m", hosts.file("a"))
    hosts.bucket.create("registry/other/1.json", data)
    hosts.bucket.create("registry/m/1.signatures", data)

    fresh = hosts.registry("fresh")

    told = " ".join(map(str, fresh.problems()))
    assert "registry/other/1.json is damaged" in told
    assert "registry/m/1.signatures is damaged" in told
    assert [version.reference for version in fresh.list()] == ["m:1"]
    with pytest.raises(ArtifactCorruptError, match=r"1\.signatures is damaged"):
        SharedIndex(hosts.bucket).signatures("m", 1)


def test_an_object_too_large_to_be_ours_is_not_read(tmp_path: Path) -> None:
    bucket = FileBucket(tmp_path)
    bucket.create("registry/m/1.json", b"{}")
    with (tmp_path / "registry" / "m" / "1.json").open("r+b") as file:
        file.truncate(MAX_READ_BYTES + 1)  # a hole, which takes no room

    with pytest.raises(ArtifactCorruptError, match="more than the limit"):
        SharedIndex(bucket).read("m", 1)
