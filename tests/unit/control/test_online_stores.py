"""What is made readable for replicas is the store, and nothing that a link leads to."""

import stat
from pathlib import Path

import pytest

from headrace.control.online_stores import OnlineStores
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
    stores = OnlineStores(tmp_path / "home")

    with pytest.raises(FailedPreconditionError, match=r"`chmod o\+r` it, or leave"):
        stores.prepare(f"sqlite:///{file}", for_others=True)
    stores.close()
    assert mode(file) == 0o600


@pytest.mark.parametrize("url", ["redis://host/0", "unix:///run/redis.sock"])
def test_a_store_that_is_no_file_needs_nothing(tmp_path: Path, url: str) -> None:
    stores = OnlineStores(tmp_path)

    assert stores.prepare(url, for_others=True) is None
