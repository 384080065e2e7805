"""What is made readable for replicas is the store, never a directory that holds anything else."""

import stat
from pathlib import Path

import pytest

from headrace.control.base.settings import resolve_url
from headrace.control.local.online_stores import OnlineStores
from headrace.core import FailedPreconditionError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_store_in_the_home_is_made_and_may_be_read_by_all_who_see_it(tmp_path: Path) -> None:
    file = tmp_path / "features" / "online" / "online.db"
    stores = OnlineStores(tmp_path)
    folder = stores.prepare(f"sqlite:///{file}", for_others=True)
    modes = {mode(path) for path in file.parent.iterdir()}
    stores.close()

    assert folder == file.parent
    assert (mode(file.parent), modes) == (0o755, {0o644})


def test_what_a_link_in_its_place_leads_to_stays_private(tmp_path: Path) -> None:
    file, secret = tmp_path / "features" / "online" / "online.db", tmp_path / "token"
    secret.touch(0o600)
    stores = OnlineStores(tmp_path)
    stores.prepare(f"sqlite:///{file}", for_others=False)
    beside = file.with_name("online.db-shm")
    beside.unlink()
    beside.symlink_to(secret)
    stores.prepare(f"sqlite:///{file}", for_others=True)
    stores.close()

    assert mode(secret) == 0o600


def test_a_store_elsewhere_is_left_as_its_owner_made_it(tmp_path: Path) -> None:
    file = tmp_path / "elsewhere" / "online.db"
    file.parent.mkdir(0o711)
    stores = OnlineStores(tmp_path / "home")

    with pytest.raises(FailedPreconditionError, match=r"`chmod o\+r` it, or move"):
        stores.prepare(f"sqlite:///{file}", for_others=True)
    stores.close()
    assert (mode(file), mode(file.parent)) == (0o600, 0o711)


def tree(folder: Path) -> dict[Path, int]:
    return {path: path.lstat().st_mode for path in (folder, *folder.rglob("*"))}


CLOSED = (
    *("x.db", "features/x.db", "features/other/x.db", "run/r2/x.db", "run/envoy/x.db"),
    *("logs/x.db", "payloads/x.db", "registry/x.db", "artifacts/x.db", "../x.db", "../../x.db"),
    *("features/online/../x.db", "features/online/deeper/x.db"),
)


@pytest.mark.parametrize("name", CLOSED)
@pytest.mark.parametrize("scheme", ["sqlite://", "feast://"])
def test_no_directory_of_headrace_is_opened_to_replicas(
    tmp_path: Path, scheme: str, name: str
) -> None:
    home = tmp_path / "inner" / "home"
    for folder in (home, *(home / one for one in CLOSED)):
        folder.resolve().parent.mkdir(parents=True, exist_ok=True)
    home.chmod(0o700)
    before = tree(tmp_path)
    stores = OnlineStores(home)
    slash = "/" if scheme == "sqlite://" else ""

    with pytest.raises(FailedPreconditionError, match="holds files of Headrace"):
        stores.prepare(f"{scheme}{slash}{home}/{name}", for_others=True)
    assert tree(tmp_path) == before


def test_a_link_into_the_home_or_sockets_is_followed_before_it_is_judged(tmp_path: Path) -> None:
    home, sockets = tmp_path / "home", tmp_path / "sockets"
    (home / "run").mkdir(parents=True)
    sockets.mkdir()
    stores = OnlineStores(home, sockets)
    for number, folder in enumerate((home / "run", sockets, home, tmp_path)):
        link = tmp_path / f"link-{number}"
        link.symlink_to(folder)
        with pytest.raises(FailedPreconditionError, match="holds files of Headrace"):
            stores.prepare(f"sqlite:///{link}/x.db", for_others=True)


@pytest.mark.parametrize("url", ["sqlite:////{}/a/b/x.db", "feast:///{}/a/b"])
def test_a_missing_directory_is_told_and_not_made(tmp_path: Path, url: str) -> None:
    stores = OnlineStores(tmp_path / "home")

    with pytest.raises(
        FailedPreconditionError, match=r"directory .* does not exist; create it first"
    ):
        stores.prepare(url.format(tmp_path / "elsewhere"), for_others=False)
    assert list(tmp_path.iterdir()) == []


def test_a_secret_that_a_path_holds_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAFKA_PW", "s3cr3t-kafka-pw")
    stores = OnlineStores(tmp_path)
    for reference in ("sqlite:////proc/${KAFKA_PW}/x.db", "feast:////nonexist/${KAFKA_PW}/x"):
        with pytest.raises(FailedPreconditionError, match=r"\$\{KAFKA_PW\}") as error:
            stores.prepare(resolve_url(reference), for_others=True)
        assert "s3cr3t" not in str(error.value)


@pytest.mark.parametrize("url", ["redis://host/0", "unix:///run/redis.sock"])
def test_a_store_that_is_no_file_needs_nothing(tmp_path: Path, url: str) -> None:
    stores = OnlineStores(tmp_path)

    assert stores.prepare(url, for_others=True) is None
