"""Models in a bucket of a real S3 server."""

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import obstore
import pytest
from obstore.store import S3Store

from headrace.core import FailedPreconditionError, NotFoundError
from headrace.core.model_uri import parse_model_uri
from headrace.sources import Downloader, RemoteBody, RemoteFile, open_source
from tests.contract.s3_servers import NoServerError, S3Server, make_bucket, running_moto

pytestmark = pytest.mark.e2e

MIB = 1 << 20
Fetch = Callable[..., dict[str, bytes]]


@pytest.fixture(scope="module")
def moto() -> Iterator[S3Server]:
    try:
        with running_moto() as server:
            yield server
    except NoServerError as error:
        pytest.skip(str(error))


@pytest.fixture
def bucket(moto: S3Server) -> str:
    name = f"b-{uuid.uuid4().hex[:12]}"
    make_bucket(moto, name)
    return name


@pytest.fixture
def store(moto: S3Server, bucket: str) -> S3Store:
    return moto.store(bucket)


@pytest.fixture
def downloader(moto: S3Server, tmp_path: Path) -> Callable[[str], Downloader]:
    def downloader(text: str) -> Downloader:
        uri = parse_model_uri(text)
        source = open_source(uri, moto.environment())
        return Downloader(source=source, location=uri.location, cache=tmp_path / "cache")

    return downloader


@pytest.fixture
def fetch(downloader: Callable[[str], Downloader]) -> Fetch:
    def fetch(text: str) -> dict[str, bytes]:
        loader = downloader(text)
        with loader.downloaded(loader.resolve()) as model:
            if model.is_file():
                return {model.name: model.read_bytes()}
            files = [path for path in model.rglob("*") if path.is_file()]
            return {path.relative_to(model).as_posix(): path.read_bytes() for path in files}

    return fetch


def test_key_is_a_file_and_prefix_a_directory(store: S3Store, bucket: str, fetch: Fetch) -> None:
    large = os.urandom(20 * MIB + 7)  # more than one range
    objects = {"m/1/model.onnx": large, "m/1/a/words.txt": b"a", "m/10/x": b"no"}
    for key, data in objects.items():
        obstore.put(store, key, data)

    assert fetch(f"s3://{bucket}/m/1/model.onnx") == {"model.onnx": large}
    assert fetch(f"s3://{bucket}/m/1/") == {"model.onnx": large, "a/words.txt": b"a"}


def test_markers_of_directories_are_no_files(
    moto: S3Server, store: S3Store, bucket: str, fetch: Fetch
) -> None:
    obstore.put(store, "m/a/words.txt", b"a")
    obstore.put(store, "m/b.txt", b"b")  # a directory with one file stands for that file
    for marker in ("m/", "m/a/"):  # obstore itself would omit the last `/`
        url = f"http://127.0.0.1:{moto.port}/{bucket}/{marker}"
        assert httpx.put(url, headers={"content-length": "0"}).status_code == 200

    assert fetch(f"s3://{bucket}/m") == {"a/words.txt": b"a", "b.txt": b"b"}


def test_revision_changes_with_the_content_only(
    store: S3Store, bucket: str, downloader: Callable[[str], Downloader]
) -> None:
    def revision() -> str:
        return downloader(f"s3://{bucket}/m").resolve().revision

    obstore.put(store, "m/a", b"1")
    obstore.put(store, "m/b", b"2")
    first = revision()
    obstore.put(store, "other", b"3")

    assert revision() == first
    obstore.put(store, "m/b", b"3")
    assert revision() != first


def test_public_objects_need_no_credentials(bucket: str, moto: S3Server) -> None:
    url = f"http://127.0.0.1:{moto.port}/{bucket}/m"
    assert httpx.put(url, content=b"1", headers={"x-amz-acl": "public-read"}).status_code == 200
    variables = {
        "AWS_ENDPOINT_URL": moto.environment()["AWS_ENDPOINT_URL"],
        "AWS_SKIP_SIGNATURE": "true",
    }

    listing = open_source(parse_model_uri(f"s3://{bucket}/m"), variables).resolve()

    assert [file.size_bytes for file in listing.files] == [1]


def test_missing_keys_and_buckets_are_explained(bucket: str, fetch: Fetch) -> None:
    with pytest.raises(NotFoundError, match="there is no such object or prefix"):
        fetch(f"s3://{bucket}/missing")
    with pytest.raises(FailedPreconditionError, match="bucket does not exist"):
        fetch("s3://no-such-bucket-here/m.onnx")


def test_object_that_changes_during_the_download_is_refused(
    store: S3Store, bucket: str, downloader: Callable[[str], Downloader]
) -> None:
    obstore.put(store, "m.onnx", b"1" * 100)
    loader = downloader(f"s3://{bucket}/m.onnx")
    listing = loader.resolve()
    obstore.put(store, "m.onnx", b"2" * 100)

    with (
        pytest.raises(FailedPreconditionError, match="changed during the download"),
        loader.downloaded(listing),
    ):
        pass


def test_interrupted_download_continues(
    store: S3Store, bucket: str, downloader: Callable[[str], Downloader]
) -> None:
    data = os.urandom(20 * MIB)
    obstore.put(store, "m.onnx", data)
    loader = downloader(f"s3://{bucket}/m.onnx")
    source, starts = loader.source, []

    class Interrupted:
        resolve = source.resolve

        def read(self, file: RemoteFile, start: int) -> object:
            starts.append(start)
            return source.read(file, start)

    def stop(_what: str, done: int, _total: int | None) -> None:
        if done > 8 * MIB:
            raise KeyboardInterrupt

    loader.source = Interrupted()  # type: ignore[assignment]  # as the source, and counts
    loader.on_transfer = stop
    with pytest.raises(KeyboardInterrupt), loader.downloaded(loader.resolve()):
        pass
    loader.on_transfer = lambda _what, _done, _total: None

    with loader.downloaded(loader.resolve()) as model:
        assert model.read_bytes() == data
    assert starts == [0, 16 * MIB]


def test_body_says_from_where_it_is(store: S3Store, bucket: str, moto: S3Server) -> None:
    obstore.put(store, "m", b"0123456789")
    source = open_source(parse_model_uri(f"s3://{bucket}/m"), moto.environment())
    file = source.resolve().files[0]

    with source.read(file, 4) as body:
        assert isinstance(body, RemoteBody)
        assert (body.offset, body.size_bytes, b"".join(body.chunks)) == (4, 10, b"456789")
