"""What every store of artifacts has to do: a directory, and real servers that speak S3."""

import os
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from headrace.core import FailedPreconditionError
from headrace.registry.bucket import ObjectStore
from headrace.registry.shared import SharedStore, open_bucket
from tests.contract.s3_servers import (
    NoServerError,
    S3Server,
    make_bucket,
    running_moto,
    running_radosgw,
)

MIB = 1 << 20
CONDITIONAL = ["file", pytest.param("moto", marks=pytest.mark.e2e)]
ALL = [*CONDITIONAL, pytest.param("radosgw", marks=pytest.mark.e2e)]


@pytest.fixture(scope="module")
def moto() -> Iterator[S3Server]:
    try:
        with running_moto() as server:
            yield server
    except NoServerError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def radosgw() -> Iterator[S3Server]:
    try:
        with running_radosgw() as server:
            yield server
    except NoServerError as error:
        pytest.skip(str(error))


@pytest.fixture
def bucket(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "file":
        return open_bucket(f"file://{tmp_path / 'store'}")
    server: S3Server = request.getfixturevalue(request.param)
    name = f"b-{uuid.uuid4().hex[:12]}"
    make_bucket(server, name)
    url = f"s3://{name}/models/a"
    return open_bucket(url, environment=server.environment(), retry_s=5.0)


@pytest.mark.parametrize("bucket", CONDITIONAL, indirect=True)
def test_what_was_uploaded_is_read_back_whole_and_in_ranges(bucket: ObjectStore) -> None:
    data = os.urandom(20 * MIB + 7)
    chunks = (data[i : i + MIB] for i in range(0, len(data), MIB))

    bucket.upload("sha256/ab/0/cd", chunks, len(data))

    found = bucket.find("sha256/ab/0/cd")
    assert found is not None
    assert found.size_bytes == len(data)
    assert bucket.read_range("sha256/ab/0/cd", 9 * MIB, 3 * MIB) == data[9 * MIB : 12 * MIB]
    assert bucket.read_range("sha256/ab/0/cd", 20 * MIB, 7) == data[-7:]


@pytest.mark.parametrize("bucket", ALL, indirect=True)
def test_an_upload_whose_source_fails_leaves_nothing(bucket: ObjectStore) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(20):
            yield os.urandom(MIB)
        raise FailedPreconditionError("the source is damaged")

    with pytest.raises(FailedPreconditionError, match="source is damaged"):
        bucket.upload("sha256/ab/0/cd", chunks(), 24 * MIB)

    assert bucket.find("sha256/ab/0/cd") is None
    assert list(bucket.list("sha256/")) == []


@pytest.mark.parametrize("bucket", ALL, indirect=True)
def test_what_is_not_there_is_none(bucket: ObjectStore) -> None:
    assert bucket.read("registry/m/1.json") is None
    assert bucket.read_range("registry/m/1.json", 0, 5) is None
    assert bucket.find("registry/m/1.json") is None
    assert list(bucket.list("registry/m/")) == []
    bucket.delete(["registry/m/1.json"])


@pytest.mark.parametrize("bucket", ALL, indirect=True)
def test_a_listing_holds_every_key_below_a_prefix_and_no_other(bucket: ObjectStore) -> None:
    keys = [f"registry/m/{number}.json" for number in range(1, 8)]
    for key in [*keys, "registry/mm/1.json", "sha256/ab/manifest.json"]:
        bucket.create(key, key.encode())

    assert sorted(info.key for info in bucket.list("registry/m/")) == keys
    etags = {info.key: info.etag for info in bucket.list("registry/m/")}
    read = bucket.read(keys[0])
    assert read is not None
    assert read[1] == etags[keys[0]]


@pytest.mark.parametrize("bucket", CONDITIONAL, indirect=True)
def test_an_object_is_created_once(bucket: ObjectStore) -> None:
    assert bucket.create("registry/m/1.json", b"first")
    assert not bucket.create("registry/m/1.json", b"second")
    assert bucket.create("registry/m/1.json", b"first")  # as a second try of the same write
    assert bucket.read("registry/m/1.json") == (b"first", bucket.read("registry/m/1.json")[1])  # type: ignore[index]  # it is there


@pytest.mark.parametrize("bucket", CONDITIONAL, indirect=True)
def test_an_object_is_replaced_only_over_what_was_read(bucket: ObjectStore) -> None:
    bucket.create("registry/m/1.signatures", b"one")
    read = bucket.read("registry/m/1.signatures")
    assert read is not None

    assert bucket.replace("registry/m/1.signatures", b"two", read[1])
    assert not bucket.replace("registry/m/1.signatures", b"three", read[1])
    assert not bucket.replace("registry/m/2.signatures", b"three", read[1])
    found = bucket.read("registry/m/1.signatures")
    assert found is not None
    assert found[0] == b"two"


@pytest.mark.parametrize("bucket", CONDITIONAL, indirect=True)
def test_of_many_who_create_one_key_at_once_one_succeeds(bucket: ObjectStore) -> None:
    for key in (f"registry/m/{number}.json" for number in range(1, 6)):
        start = threading.Barrier(8)

        def create(who: int, key: str = key, start: threading.Barrier = start) -> bool:
            start.wait()
            return bucket.create(key, b"%d" % who)

        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(create, range(8)))

        assert won.count(True) == 1
        found = bucket.read(key)
        assert found is not None
        assert found[0] == b"%d" % won.index(True)


@pytest.mark.parametrize("bucket", CONDITIONAL, indirect=True)
def test_a_store_that_heeds_conditions_is_used(bucket: ObjectStore) -> None:
    SharedStore(bucket).check_conditions()
    SharedStore(bucket).check_conditions()


@pytest.mark.parametrize("bucket", [pytest.param("radosgw", marks=pytest.mark.e2e)], indirect=True)
def test_a_store_that_ignores_conditions_is_refused(bucket: ObjectStore) -> None:
    with pytest.raises(FailedPreconditionError, match="ignores conditional writes"):
        SharedStore(bucket).check_conditions()


@pytest.mark.e2e
def test_a_bucket_that_is_not_there_is_named(moto: S3Server) -> None:
    bucket = open_bucket("s3://nowhere-at-all/x", environment=moto.environment(), retry_s=2.0)

    with pytest.raises(FailedPreconditionError, match=r"nowhere-at-all/x.*bucket does not exist"):
        bucket.read("registry/m/1.json")
    with pytest.raises(FailedPreconditionError, match="bucket does not exist"):
        bucket.create("registry/m/1.json", b"x")
    with pytest.raises(FailedPreconditionError, match="bucket does not exist"):
        list(bucket.list("registry/"))


@pytest.mark.e2e
def test_wrong_credentials_are_told_without_them(radosgw: S3Server) -> None:
    environment = radosgw.environment() | {"AWS_SECRET_ACCESS_KEY": "guessed-wrong"}
    bucket = open_bucket("s3://some-bucket/x", environment=environment, retry_s=2.0)

    with pytest.raises(FailedPreconditionError, match="does not let us read") as caught:
        bucket.read("registry/m/1.json")

    assert "guessed-wrong" not in str(caught.value)
