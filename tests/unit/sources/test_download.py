"""The downloader with a source in memory, and without waiting."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import (
    ArtifactCorruptError,
    FailedPreconditionError,
    InvalidArgumentError,
    UnavailableError,
)
from headrace.sources import Downloader, DownloadLimits, Listing, RemoteBody, RemoteFile

MIB = 1 << 20


@dataclass
class MemorySource:
    """Files by path; `cuts` are the bytes after which the next reads fail."""

    files: dict[str, bytes]
    revision: str = "r1"
    has_hashes: bool = True
    cuts: list[int] = field(default_factory=list)
    damaged: dict[str, bytes] = field(default_factory=dict)
    starts: list[int] = field(default_factory=list)

    def resolve(self) -> Listing:
        files = tuple(
            RemoteFile(
                path=path,
                locator=path,
                size_bytes=len(data),
                sha256=hashlib.sha256(data).hexdigest() if self.has_hashes else "",
            )
            for path, data in self.files.items()
        )
        return Listing(name="model", files=files, revision=self.revision)

    @contextmanager
    def read(self, file: RemoteFile, start: int) -> Iterator[RemoteBody]:
        self.starts.append(start)
        data = self.damaged.get(file.path, self.files[file.path])
        cut = self.cuts.pop(0) if self.cuts else None

        def chunks() -> Iterator[bytes]:
            end = len(data) if cut is None else start + cut
            for i in range(start, min(end, len(data)), 1000):
                yield data[i : min(i + 1000, end)]
            if cut is not None:
                raise UnavailableError("the connection was lost")

        yield RemoteBody(offset=start, chunks=chunks(), size_bytes=len(data))


def downloader(source: MemorySource, cache: Path, **limits: int) -> Downloader:
    return Downloader(
        source=source,
        location="memory://model",
        cache=cache,
        limits=DownloadLimits(**limits),
        sleep=lambda _: None,
        chance=lambda: 0.0,
    )


def fetched(source: MemorySource, cache: Path, **limits: int) -> dict[str, bytes]:
    loader = downloader(source, cache, **limits)
    with loader.downloaded(loader.resolve()) as model:
        if model.is_file():
            return {"": model.read_bytes()}
        files = [path for path in model.rglob("*") if path.is_file()]
        return {path.relative_to(model).as_posix(): path.read_bytes() for path in files}


@given(
    files=st.dictionaries(
        st.sampled_from(["a", "b/c", "b/d", "e"]), st.binary(max_size=5000), min_size=1
    ),
    cuts=st.lists(st.integers(0, 3000), max_size=4),
)
def test_whatever_is_cut_the_model_is_what_the_source_holds(
    files: dict[str, bytes], cuts: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = tmp_path_factory.mktemp("cache")

    source = MemorySource(files | {"z": b"z"}, cuts=cuts)

    assert fetched(source, cache) == source.files
    assert {entry.suffix for entry in cache.iterdir()} == {".lock"}


def test_failures_count_only_without_progress(tmp_path: Path) -> None:
    data = bytes(5 * MIB)

    assert fetched(MemorySource({"": data}, cuts=[MIB] * 4), tmp_path, attempts=2) == {"": data}


def test_last_error_is_raised_after_all_attempts(tmp_path: Path) -> None:
    source = MemorySource({"": bytes(5000)}, cuts=[1000, 0, 0])

    with pytest.raises(UnavailableError, match=r"lost; 1 kB are kept, run the command again"):
        fetched(source, tmp_path, attempts=3)
    assert source.starts == [0, 1000, 1000]


def test_part_that_does_not_fit_is_downloaded_once_more(tmp_path: Path) -> None:
    source = MemorySource({"": bytes(5000)}, damaged={"": b"x" * 5000}, cuts=[1000])
    with pytest.raises(UnavailableError):
        fetched(source, tmp_path, attempts=1)
    source.damaged.clear()

    assert fetched(source, tmp_path) == {"": bytes(5000)}
    assert source.starts == [0, 1000, 0]


def test_content_that_differs_from_its_hash_twice_is_refused(tmp_path: Path) -> None:
    source = MemorySource({"": bytes(5000)}, damaged={"": b"x" * 5000}, cuts=[1000])

    with pytest.raises(ArtifactCorruptError, match="differs from its hash"):
        fetched(source, tmp_path)
    assert source.starts == [0, 1000, 0]


def test_complete_files_of_the_same_revision_are_kept(tmp_path: Path) -> None:
    source = MemorySource({"a": bytes(10), "b": bytes(20)}, has_hashes=False)
    loader = downloader(source, tmp_path)
    with pytest.raises(RuntimeError), loader.downloaded(loader.resolve()):
        raise RuntimeError
    source.starts.clear()

    assert fetched(source, tmp_path) == source.files
    assert source.starts == []


@pytest.mark.parametrize("revision", ["r2", ""])
def test_files_of_another_or_unknown_revision_are_fetched_again(
    tmp_path: Path, revision: str
) -> None:
    loader = downloader(MemorySource({"": b"old"}, has_hashes=False), tmp_path)
    with pytest.raises(RuntimeError), loader.downloaded(loader.resolve()):
        raise RuntimeError

    assert fetched(MemorySource({"": b"new"}, revision=revision), tmp_path) == {"": b"new"}


def test_model_larger_than_the_limit_is_refused_before_the_download(tmp_path: Path) -> None:
    source = MemorySource({"a": bytes(600), "b": bytes(600)})

    with pytest.raises(InvalidArgumentError, match="larger than the limit of 1 kB"):
        fetched(source, tmp_path, max_bytes=1000)
    assert source.starts == []


def test_model_larger_than_the_free_space_is_refused(tmp_path: Path) -> None:
    class Huge(MemorySource):
        def resolve(self) -> Listing:
            file = RemoteFile(path="", locator="", size_bytes=1 << 60)
            return Listing(name="model", files=(file,), revision="r1")

    with pytest.raises(FailedPreconditionError, match="are free in"):
        fetched(Huge({"": b""}), tmp_path, max_bytes=1 << 61)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no file"),
        ({"../a": b""}, "unsafe path"),
        ({"/a": b""}, "unsafe path"),
        ({"a/./b": b""}, "unsafe path"),
        ({"": b"", "a": b""}, "unsafe path"),
        ({"a" * 300: b""}, "unsafe path"),
        ({"a": b"", "a/b": b""}, "as a file and as a directory"),
        ({str(i): b"" for i in range(10_001)}, "10001 files"),
    ],
    ids=["none", "above", "absolute", "dot", "empty", "long", "file as a directory", "many"],
)
def test_listing_that_is_no_model_is_refused(
    tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    with pytest.raises(ArtifactCorruptError, match=message):
        fetched(MemorySource(files), tmp_path)


def test_progress_reaches_the_total(tmp_path: Path) -> None:
    loader = downloader(MemorySource({"a": bytes(3000), "b": bytes(500)}), tmp_path)
    reports: list[tuple[str, int, int | None]] = []
    loader.on_transfer = lambda *report: reports.append(report)

    with loader.downloaded(loader.resolve()):
        pass

    assert reports[-1] == ("downloading memory://model", 3500, 3500)
    assert [done for _, done, _ in reports] == sorted(done for _, done, _ in reports)


def test_two_downloads_of_one_location_do_not_mix(tmp_path: Path) -> None:
    loader = downloader(MemorySource({"a": b"1"}), tmp_path)

    with (
        loader.downloaded(loader.resolve()),
        pytest.raises(UnavailableError, match="another process"),
    ):
        fetched(MemorySource({"a": b"1"}), tmp_path)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a/b/model.ubj": b"1"}, {"": b"1"}),
        ({"a/b/c": b"1", "a/b/d": b"2"}, {"c": b"1", "d": b"2"}),
        ({"a/saved_model.pb": b"1"}, {"saved_model.pb": b"1"}),
    ],
)
def test_directory_that_holds_one_entry_stands_for_it(
    tmp_path: Path, files: dict[str, bytes], expected: dict[str, bytes]
) -> None:
    assert fetched(MemorySource(files), tmp_path) == expected
