"""What workers of streams see of this machine, and what is made ready for them."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from headrace.control.local.online_stores import OnlineStores
from headrace.control.local.sandbox import KernelFeatures, Libraries, Sandbox, SandboxPurpose
from headrace.control.streams.driver import Confining, embedded_log
from headrace.core import FeatureLookup, ReplicaSettings
from headrace.core.spec.stream_parts import StreamWindowSpec, StreamWindowsSpec
from headrace.streaming.settings import (
    PushSettings,
    ScoringEndpoint,
    WorkerSettings,
)


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[OnlineStores]:
    found = OnlineStores(tmp_path)
    yield found
    found.close()


@pytest.fixture
def confining(tmp_path: Path, stores: OnlineStores) -> Confining:
    """On a machine whose workers are whoever starts them."""
    return Confining(home=tmp_path, sandbox=sandbox(tmp_path, user="not root"), stores=stores)


def sandbox(home: Path, *, user: str) -> Sandbox:
    able = KernelFeatures(namespaces="", user=user)
    libraries = Libraries(needed=(), others=())
    return Sandbox(hide=(home,), reports=home, kernel_features=lambda: able, libraries=libraries)


def model(folder: Path, online_store: str = "") -> ReplicaSettings:
    features = FeatureLookup(service="", online_store=online_store)
    return ReplicaSettings(
        model_name="m",
        model_version="1",
        path=str(folder / "m.onnx"),
        features=features if online_store else msgspec.UNSET,
    )


def settings(**changes: object) -> WorkerSettings:
    told: dict[str, object] = {
        "name": "pay",
        "broker": "log:demo",
        "topics": ["in"],
        "group": "a/b",
        "member": "pay-0",
        **changes,
    }
    return msgspec.convert(told, WorkerSettings)


def pushing(url: str) -> WorkerSettings:
    return msgspec.structs.replace(settings(), features=PushSettings(view="v", online_store=url))


WINDOWS = StreamWindowsSpec(windows=[StreamWindowSpec(name="n", size_s=5)])


def test_a_worker_has_its_log_and_its_model_and_the_network_where_it_needs_it(
    tmp_path: Path, confining: Confining
) -> None:
    told = msgspec.structs.replace(settings(), model=model(tmp_path / "a"))
    endpoint = ScoringEndpoint(url="", name="m", ca_file="/ca.pem", api_key_file="/tmp/key")  # noqa: S108  # not opened
    own = confining.access(told)
    asking = confining.access(msgspec.structs.replace(settings(), endpoint=endpoint))
    other = confining.access(settings(broker="kafka://host"))

    assert (own.own, own.keep, own.network) == (
        [tmp_path / "streams" / "demo"],
        [tmp_path / "a"],
        False,
    )
    assert own.own[0].is_dir()
    assert asking.network
    assert asking.keep == [Path("/ca.pem"), Path("/tmp/key")]  # noqa: S108  # as above
    assert (other.own, other.network) == ([], True)


def test_windows_have_a_folder_of_their_stream_and_group(
    tmp_path: Path, confining: Confining
) -> None:
    found = confining.access(msgspec.structs.replace(settings(), windows=WINDOWS))

    assert found.own[-1] == tmp_path / "stream-state" / "pay" / "a%2Fb"
    assert found.own[-1].is_dir()


def test_a_store_in_the_home_is_made_and_the_workers(tmp_path: Path, confining: Confining) -> None:
    file = tmp_path / "features" / "online" / "online.db"
    found = confining.access(pushing(f"sqlite:///{file}"))

    assert found.own[-1] == file.parent
    assert file.stat().st_size > 0
    assert not found.network


def test_a_store_beside_other_files_is_not_handed_over(
    tmp_path: Path, confining: Confining
) -> None:
    folder = tmp_path / "features" / "online"
    folder.mkdir(parents=True)
    (folder / "other.db").touch()

    with pytest.raises(OSError, match=r"holds other\.db; move online\.db"):
        confining.access(pushing(f"sqlite:///{folder}/online.db"))


@pytest.mark.parametrize("name", ["x.db", "features/x.db", "run/x.db", "streams/demo/x.db"])
def test_no_other_directory_of_the_home_becomes_the_workers(
    tmp_path: Path, confining: Confining, name: str
) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)

    with pytest.raises(OSError, match="holds files of Headrace"):
        confining.access(pushing(f"sqlite:///{tmp_path}/{name}"))


@pytest.mark.parametrize("name", ["", "run", "features/online", "streams", "../x", "../.."])
def test_no_other_directory_of_the_home_becomes_an_embedded_log(tmp_path: Path, name: str) -> None:
    home = tmp_path / "inner" / "home"
    (home / "run").mkdir(parents=True)
    seen = Confining(home=home, sandbox=sandbox(home, user=""), stores=OnlineStores(home)).access

    if name == "../x":
        assert seen(settings(broker=f"log:///{home}/{name}")).own == [home.parent / "x"]
        return
    with pytest.raises(OSError, match="holds files of Headrace"):
        seen(settings(broker=f"log:///{home}/{name}"))


def test_a_store_elsewhere_is_its_owners(tmp_path: Path) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    elsewhere.mkdir()
    stores = OnlineStores(home)
    others = Confining(home=home, sandbox=sandbox(home, user=""), stores=stores)
    own = Confining(home=home, sandbox=sandbox(home, user="not root"), stores=stores)
    url = f"sqlite:///{elsewhere}/online.db"
    broker = {"broker": "kafka://host"}
    told = msgspec.structs.replace(settings(**broker), features=pushing(url).features)
    uid = others.sandbox.user(SandboxPurpose.STREAM)

    with pytest.raises(OSError, match=f"run as user {uid}, which may not write"):
        others.access(told)
    assert own.access(told).own == []
    elsewhere.chmod(0o777)
    assert others.access(told).own == []


def test_a_store_on_the_network_is_reached_over_it_if_its_variable_is_set(
    confining: Confining, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STORE", raising=False)
    with pytest.raises(OSError, match="no variable STORE"):
        confining.access(pushing("${STORE}"))
    monkeypatch.setenv("STORE", "redis://host/0")
    found = confining.access(pushing("${STORE}"))

    assert found.network
    assert found.own[1:] == []


def test_a_store_that_is_only_read_is_not_the_workers(tmp_path: Path, confining: Confining) -> None:
    folder = tmp_path / "features" / "online"
    folder.mkdir(parents=True)
    url = f"sqlite:///{folder}/online.db"
    reads = msgspec.structs.replace(settings(), model=model(tmp_path, url))
    writes = msgspec.structs.replace(reads, features=pushing(url).features)
    read, written = confining.access(reads), confining.access(writes)

    assert folder in read.keep
    assert folder not in read.own
    assert not read.network
    assert folder in written.own
    assert written.keep == [tmp_path]


def test_only_an_embedded_log_has_a_folder() -> None:
    home = Path("/home")

    assert embedded_log("log:demo", home) == Path("/home/streams/demo")
    assert embedded_log("log:///a%20b", home) == Path("/a b")
    assert embedded_log("kafka://log:1", home) is None
