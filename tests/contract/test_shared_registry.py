"""Several homes share one store: what one pushes the others see, and nothing is lost."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import obstore
import pytest

from headrace.core import (
    ArtifactCorruptError,
    Datatype,
    FailedPreconditionError,
    Inspected,
    ModelSignature,
    TensorSpec,
    UnavailableError,
)
from headrace.registry import Registry, SharedStore, open_shared
from headrace.registry.fetch import fetch_model
from headrace.registry.shared import open_bucket
from headrace.registry.shared_content import content_prefix
from headrace.registry.signing import make_key, sign
from tests.contract.s3_servers import NoServerError, S3Server, make_bucket, running_moto
from tests.contract.spoiling_proxy import SpoilingProxy, spoiling_proxy

MIB = 1 << 20
SIGNATURE = ModelSignature(
    inputs=(TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1, 4)),),
    outputs=(TensorSpec(name="prob", datatype=Datatype.FP32, shape=(-1, 2)),),
    batched=True,
)
PUSHER = """
import json, sys
from pathlib import Path

from headrace.registry import Registry, open_shared
from tests.contract.test_shared_registry import inspect_any

home, url, *files = sys.argv[1:]
registry = Registry(Path(home), inspect_any, shared=open_shared(url))
print("ready", flush=True)
sys.stdin.readline()
for file in files:
    version = registry.push("m", Path(file))
    print(json.dumps([version.reference, version.digest]), flush=True)
"""


def inspect_any(path: Path, runtime: str = "", *, allow_code: bool = False) -> Inspected:
    assert path.exists()
    del allow_code
    return Inspected(runtime or "any", SIGNATURE, runs_code=False)


@dataclass(frozen=True)
class Place:
    """Where a store is, and how it is reached."""

    url: str
    environment: dict[str, str]
    server: S3Server | None = None

    def open(self, *, port: int | None = None, retry_s: float = 5.0) -> SharedStore:
        environment = self.environment
        if port is not None:
            assert self.server is not None
            environment = self.server.environment(port)
        return open_shared(self.url, environment=environment, retry_s=retry_s)

    def registry(self, home: Path, **options: float) -> Registry:
        return Registry(home, inspect_any, shared=self.open(**options))  # type: ignore[arg-type]  # port is whole


@pytest.fixture(scope="module")
def moto() -> Iterator[S3Server]:
    try:
        with running_moto() as server:
            yield server
    except NoServerError as error:
        pytest.skip(str(error))


@pytest.fixture
def s3(moto: S3Server) -> Place:
    name = f"b-{uuid.uuid4().hex[:12]}"
    make_bucket(moto, name)
    return Place(f"s3://{name}/prod", moto.environment(), moto)


@pytest.fixture(params=["file", pytest.param("s3", marks=pytest.mark.e2e)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "file":
        return Place(f"file://{tmp_path / 'store'}", {})
    found: Place = request.getfixturevalue("s3")
    return found


@pytest.fixture
def make_file(tmp_path: Path) -> Callable[..., Path]:
    def make(content: bytes = b"model", name: str = "model.onnx") -> Path:
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    return make


def left_in(home: Path) -> list[Path]:
    return list((home / "artifacts" / "tmp").iterdir())


def test_another_home_sees_what_was_pushed_and_has_its_content(
    place: Place, tmp_path: Path, make_file: Callable[..., Path]
) -> None:
    data = os.urandom(20 * MIB + 3)
    pushed = place.registry(tmp_path / "one").push("m", make_file(data), by="ann")

    other = place.registry(tmp_path / "two")
    found = other.get("m")
    other.verify(found)

    assert found == pushed
    assert other.path(found).read_bytes() == data
    assert other.path(found).stat().st_mode & 0o777 == 0o444
    assert left_in(tmp_path / "two") == []


def test_a_directory_comes_as_it_was_whatever_its_files_are_called(
    place: Place, tmp_path: Path
) -> None:
    model = tmp_path / "source" / "my model"
    (model / "sub dir").mkdir(parents=True)
    for name in ("a%20b", "ü.txt", "sub dir/#?&=", "sub dir/x"):
        (model / name).write_text(name)
    (model / "empty").write_bytes(b"")

    pushed = place.registry(tmp_path / "one").push("m", model)
    other = place.registry(tmp_path / "two")
    path = other.path(other.get("m:1"))

    assert path.name == "my model"
    assert {f.relative_to(path).as_posix() for f in path.rglob("*") if f.is_file()} == {
        file.path for file in pushed.files
    }
    assert (path / "sub dir" / "#?&=").read_text() == "sub dir/#?&="


def test_the_same_content_from_two_homes_is_one_version(
    place: Place, tmp_path: Path, make_file: Callable[..., Path]
) -> None:
    first = place.registry(tmp_path / "one").push("m", make_file(b"a", "first.onnx"))
    second = place.registry(tmp_path / "two").push("m", make_file(b"a", "second.onnx"))

    assert second == first
    two = place.registry(tmp_path / "two")
    assert two.path(second).name == "first.onnx"
    two.verify(second)


def test_a_removed_version_is_gone_everywhere_and_its_number_stays_taken(
    place: Place, tmp_path: Path, make_file: Callable[..., Path]
) -> None:
    one, two = place.registry(tmp_path / "one"), place.registry(tmp_path / "two")
    one.push("m", make_file(b"a"))
    one.push("m", make_file(b"b"))
    assert [version.version for version in two.list("m")] == ["1", "2"]

    one.remove("m", "2")

    assert [version.version for version in two.list("m")] == ["1"]
    assert two.push("m", make_file(b"b")).version == "3"
    assert [version.version for version in one.list("m")] == ["1", "3"]


def test_signatures_of_two_homes_are_both_kept(
    place: Place, tmp_path: Path, make_file: Callable[..., Path]
) -> None:
    one, two = place.registry(tmp_path / "one"), place.registry(tmp_path / "two")
    version = one.push("m", make_file())
    keys = [make_key() for _ in range(6)]

    def add(number: int) -> None:
        signature = sign(version, keys[number], signed_at=float(number), by="ann")
        (one if number % 2 else two).add_signature("m", "1", signature)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(add, range(6)))

    third = place.registry(tmp_path / "three")
    kept = third.signatures(third.get("m:1"))
    assert sorted(signature.signed_at for signature in kept) == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    two.list("m")
    assert two.signatures(version) == kept


@pytest.mark.slow
def test_of_a_hundred_pushes_of_two_processes_none_is_lost_and_none_has_anothers_number(
    place: Place, tmp_path: Path
) -> None:
    files = [tmp_path / f"{number}.onnx" for number in range(100)]
    for number, file in enumerate(files):
        file.write_bytes(b"content %d" % number)
    running = [
        subprocess.Popen(  # noqa: S603  # our own script
            [sys.executable, "-c", PUSHER, str(tmp_path / f"home{i}"), place.url, *map(str, mine)],
            env={**os.environ, **place.environment, "PYTHONPATH": str(Path(__file__).parents[2])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for i, mine in enumerate((files[::2], files[1::2]))
    ]
    try:
        for process in running:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        with ThreadPoolExecutor(2) as pool:
            outputs = list(pool.map(lambda p: p.communicate("go\n", timeout=100)[0], running))
        assert [process.returncode for process in running] == [0, 0]
    finally:
        for process in running:
            process.kill()
            process.wait()

    told = [json.loads(line) for output in outputs for line in output.splitlines()]
    third = place.registry(tmp_path / "third")
    versions = third.list("m")
    assert [version.version for version in versions] == [str(n) for n in range(1, 101)]
    assert sorted(told) == sorted([v.reference, v.digest] for v in versions)
    assert len({version.digest for version in versions}) == 100
    for version in versions[::10]:
        third.verify(version)


def test_one_content_pushed_by_many_homes_at_once_is_one_version(
    place: Place, tmp_path: Path, make_file: Callable[..., Path]
) -> None:
    path = make_file(b"same")
    registries = [place.registry(tmp_path / f"home{number}") for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        versions = list(pool.map(lambda registry: registry.push("m", path), registries))

    assert {version.reference for version in versions} == {"m:1"}
    assert len(registries[0].list("m")) == 1


def test_a_damaged_copy_in_the_home_is_fetched_again(
    place: Place, tmp_path: Path, make_file: Callable[..., Path]
) -> None:
    registry = place.registry(tmp_path / "one")
    version = registry.push("m", make_file(b"good"))
    path = registry.path(version)
    path.chmod(0o644)
    path.write_bytes(b"evil")

    registry.verify(version)

    assert registry.path(version).read_bytes() == b"good"


def test_a_home_with_versions_of_its_own_is_not_mixed_with_a_store(
    place: Place, tmp_path: Path, make_file: Callable[..., Path]
) -> None:
    Registry(tmp_path / "one", inspect_any).push("m", make_file(b"own"))

    with pytest.raises(FailedPreconditionError, match=r"local versions \(m:1\)"):
        place.registry(tmp_path / "one").push("m", make_file(b"other"))


def test_a_home_that_is_a_copy_refuses_to_go_its_own_way(
    place: Place, tmp_path: Path, make_file: Callable[..., Path]
) -> None:
    version = place.registry(tmp_path / "one").push("m", make_file(b"a"))
    alone = Registry(tmp_path / "one", inspect_any)

    with pytest.raises(FailedPreconditionError, match="only commands with `--artifacts"):
        alone.push("m", make_file(b"b"))
    with pytest.raises(FailedPreconditionError, match="only commands with `--artifacts"):
        alone.gc()
    assert alone.push("m", make_file(b"a")) == version  # which is nothing new
    alone.verify(alone.get("m:1"))
    assert alone.get("m:1") == version
    with pytest.raises(FailedPreconditionError, match="mirrors the models in"):
        Registry(tmp_path / "one", inspect_any, shared=open_shared(f"file://{tmp_path}/else")).push(
            "m", make_file(b"b")
        )


# What a bad network, a bad server and a crash do.


@pytest.fixture
def proxy(s3: Place) -> Iterator[SpoilingProxy]:
    assert s3.server is not None
    with spoiling_proxy(s3.server.port) as proxy:
        yield proxy


@pytest.mark.e2e
def test_answers_that_break_off_are_asked_for_again(
    s3: Place, proxy: SpoilingProxy, tmp_path: Path, make_file: Callable[..., Path]
) -> None:
    data = os.urandom(24 * MIB)
    s3.registry(tmp_path / "one").push("m", make_file(data))
    other = s3.registry(tmp_path / "two", port=proxy.port)
    version = other.get("m:1")
    proxy.cut_after_bytes = 3 * MIB
    healer = threading.Timer(1.0, lambda: setattr(proxy, "cut_after_bytes", None))
    healer.start()

    path = other.path(version)

    healer.join()
    assert proxy.cuts >= 3
    assert path.read_bytes() == data


@pytest.mark.e2e
def test_a_busy_store_is_asked_again(
    s3: Place, proxy: SpoilingProxy, tmp_path: Path, make_file: Callable[..., Path]
) -> None:
    proxy.busy = 5
    registry = s3.registry(tmp_path / "one", port=proxy.port)

    version = registry.push("m", make_file(os.urandom(MIB)))

    assert proxy.busy == 0
    assert s3.registry(tmp_path / "two").get("m:1") == version


@pytest.mark.e2e
@pytest.mark.parametrize("nth", range(1, 15))
def test_a_lost_answer_to_any_request_of_a_push_makes_no_second_version(
    s3: Place, proxy: SpoilingProxy, tmp_path: Path, make_file: Callable[..., Path], nth: int
) -> None:
    proxy.drop_nth = nth
    registry = s3.registry(tmp_path / "one", port=proxy.port)

    version = registry.push("m", make_file(b"content"))

    assert proxy.dropped == 1
    assert version.reference == "m:1"
    assert [v.reference for v in s3.registry(tmp_path / "two").list("m")] == ["m:1"]


@pytest.mark.e2e
def test_wrong_bytes_are_told_and_not_kept(
    s3: Place, proxy: SpoilingProxy, tmp_path: Path, make_file: Callable[..., Path]
) -> None:
    s3.registry(tmp_path / "one").push("m", make_file(b"weights: " + b"1" * 1000))
    other = s3.registry(tmp_path / "two", port=proxy.port)
    version = other.get("m:1")
    proxy.flip = (b"weights: 1111", b"weights: 9111")

    with pytest.raises(ArtifactCorruptError, match=rf"{version.digest[7:]}.*is damaged"):
        other.path(version)

    assert not (tmp_path / "two" / "artifacts" / "sha256" / version.digest[7:]).exists()
    assert left_in(tmp_path / "two") == []
    proxy.flip = None
    assert other.path(version).read_bytes().startswith(b"weights: 1111")


@pytest.mark.e2e
@pytest.mark.parametrize("damage", ["short", "missing", "changed"])
def test_a_damaged_object_is_named_and_healed_by_a_push(
    s3: Place, tmp_path: Path, make_file: Callable[..., Path], damage: str
) -> None:
    data = os.urandom(MIB)
    version = s3.registry(tmp_path / "one").push("m", make_file(data))
    assert s3.server is not None
    store = s3.server.store(s3.url.split("/")[2])
    key = f"prod/{content_prefix(version.digest)}0/{version.digest[7:]}"
    if damage == "missing":
        obstore.delete(store, key)
    else:
        obstore.put(store, key, data[: MIB // 2] if damage == "short" else os.urandom(MIB))
    other = s3.registry(tmp_path / "two")

    with pytest.raises(ArtifactCorruptError) as caught:
        other.path(version)
    assert key in str(caught.value)
    assert "Delete that object and push the model again" in str(caught.value)

    obstore.delete(store, key)
    assert s3.registry(tmp_path / "one").push("m", make_file(data)) == version
    assert other.path(version).read_bytes() == data


@pytest.mark.e2e
def test_a_store_that_goes_away_in_the_middle_leaves_nothing_half_done(
    s3: Place, proxy: SpoilingProxy, tmp_path: Path, make_file: Callable[..., Path]
) -> None:
    data = os.urandom(24 * MIB)
    pushing = s3.registry(tmp_path / "one", port=proxy.port, retry_s=0.2)
    proxy.away_after_bytes = 12 * MIB

    with pytest.raises(UnavailableError, match=r"cannot .* of s3://"):
        pushing.push("m", make_file(data))
    assert s3.registry(tmp_path / "two").list() == []
    assert left_in(tmp_path / "one") == []

    proxy.away_after_bytes, proxy.is_away = None, False
    version = pushing.push("m", make_file(data))
    assert version.reference == "m:1"

    pulling = s3.registry(tmp_path / "three", port=proxy.port, retry_s=0.2)
    pulling.get("m:1")
    proxy.away_after_answers = 12 * MIB
    with pytest.raises(UnavailableError, match=r"cannot read sha256/.* of s3://"):
        pulling.path(version)
    assert left_in(tmp_path / "three") == []
    assert pulling.get("m:1") == version  # as this home has seen it
    with pytest.raises(UnavailableError):
        pulling.get("m")  # which is newest only the store knows


@pytest.mark.e2e
def test_a_push_that_is_killed_leaves_nothing_to_see_and_is_done_again(
    s3: Place, proxy: SpoilingProxy, tmp_path: Path, make_file: Callable[..., Path]
) -> None:
    assert s3.server is not None
    path = make_file(os.urandom(64 * MIB))
    proxy.pause_up_s = 0.002
    environment = {**os.environ, **s3.server.environment(proxy.port)}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    process = subprocess.Popen(  # noqa: S603  # our own script
        [sys.executable, "-c", PUSHER, str(tmp_path / "one"), s3.url, str(path)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()
        deadline = time.monotonic() + 60
        while proxy.asked_bytes < 16 * MIB:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
        with contextlib.suppress(OSError):
            process.communicate()

    bucket = open_bucket(s3.url, environment=s3.environment)
    assert s3.registry(tmp_path / "two").list() == []
    assert [info.key for info in bucket.list("sha256/")] == []
    version = s3.registry(tmp_path / "one").push("m", path)
    assert version.reference == "m:1"
    fetched = fetch_model(s3.open(), "m:1", tmp_path / "out")
    assert Path(fetched.path).read_bytes() == path.read_bytes()


@pytest.mark.e2e
@pytest.mark.slow
def test_memory_stays_small_whatever_the_size(s3: Place, tmp_path: Path) -> None:
    path = tmp_path / "big.bin"
    with path.open("wb") as file:
        for _ in range(160):
            file.write(os.urandom(MIB))
    script = (
        "import resource, sys; from pathlib import Path\n"
        "from headrace.registry import Registry, open_shared\n"
        "from headrace.registry.fetch import fetch_model\n"
        "from tests.contract.test_shared_registry import inspect_any\n"
        "home, url, file, what = sys.argv[1:]\n"
        "shared = open_shared(url)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "if what == 'push':\n"
        "    Registry(Path(home), inspect_any, shared=shared).push('m', Path(file))\n"
        "else:\n"
        "    fetch_model(shared, 'm:1', Path(home))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    for what in ("push", "fetch"):
        done = subprocess.run(  # noqa: S603  # our own script
            [sys.executable, "-c", script, str(tmp_path / what), s3.url, str(path), what],
            env={**os.environ, **s3.environment, "PYTHONPATH": str(Path(__file__).parents[2])},
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert int(done.stdout) < 100 * 1024, f"{what}: {done.stdout} kB more"
