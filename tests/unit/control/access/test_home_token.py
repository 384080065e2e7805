"""Whoever owns the files of a home gets in, by a token that is made for him."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from headrace.control.auth.credentials import hash_of, new_secret
from headrace.control.auth.home_token import OWNER, ensure_home_token, read_home_token
from headrace.control.model.credentials import CredentialKind
from headrace.control.state import home_url, open_store
from headrace.control.state.store import Store
from headrace.core import FailedPreconditionError


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = open_store(home_url(tmp_path))
    yield store
    store.close()


def valid(store: Store) -> list[str]:
    tokens = store.credentials.blocking(CredentialKind.TOKEN, OWNER)
    return [token.hash for token in tokens if token.is_valid(100.0)]


def test_the_first_start_makes_a_token_for_the_owner_only(store: Store, tmp_path: Path) -> None:
    path = ensure_home_token(store, tmp_path, now=1.0)
    token = read_home_token(tmp_path)

    assert path.stat().st_mode & 0o777 == 0o600
    assert token.startswith("hrt_")
    assert valid(store) == [hash_of(token)]
    owner = store.principal.blocking(OWNER)
    assert owner is not None
    assert owner.roles == ("admin",)
    assert [(e.action, e.actor) for e in store.trail.blocking()] == [
        ("user.add", OWNER),
        ("token.create", OWNER),
    ]
    assert token not in str(store.trail.blocking())


def test_the_next_start_keeps_it(store: Store, tmp_path: Path) -> None:
    ensure_home_token(store, tmp_path, now=1.0)
    before = read_home_token(tmp_path)
    ensure_home_token(store, tmp_path, now=2.0)

    assert read_home_token(tmp_path) == before
    assert store.trail_head.blocking().count == 2


@pytest.mark.parametrize("how", ["deleted", "spoiled", "read by others", "revoked"])
def test_what_is_lost_or_leaked_is_replaced_and_the_old_one_is_void(
    store: Store, tmp_path: Path, how: str
) -> None:
    path = ensure_home_token(store, tmp_path, now=1.0)
    before = read_home_token(tmp_path)
    if how == "deleted":
        path.unlink()
    elif how == "spoiled":
        path.write_text("hrt_nonsense")
    elif how == "read by others":
        path.chmod(0o640)
    else:
        store.revoke_credential.blocking(
            store.credentials.blocking(CredentialKind.TOKEN)[0].id, revoked_at=1.5
        )
    ensure_home_token(store, tmp_path, now=2.0)
    after = read_home_token(tmp_path)

    assert after != before
    assert valid(store) == [hash_of(after)]
    assert path.stat().st_mode & 0o777 == 0o600


def test_other_homes_and_other_tokens_of_the_owner_stay(store: Store, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    ensure_home_token(store, tmp_path, now=1.0)
    ensure_home_token(store, tmp_path / "other", now=1.0)
    (tmp_path / "admin-token").unlink()
    ensure_home_token(store, tmp_path, now=2.0)

    tokens = {hash_of(read_home_token(home)) for home in (tmp_path, tmp_path / "other")}
    assert set(valid(store)) == tokens


def test_who_leads_an_installation_voids_the_token_of_who_led_before(
    store: Store, tmp_path: Path
) -> None:
    homes = [tmp_path / name for name in ("pod-a", "pod-b", "elsewhere")]
    for home in homes:
        home.mkdir()
    ensure_home_token(store, homes[2], now=1.0)
    for home in homes[:2]:
        ensure_home_token(store, home, now=2.0, installation="cluster:models/headrace")

    assert set(valid(store)) == {hash_of(read_home_token(home)) for home in homes[1:]}


def test_control_planes_with_one_token_file_have_one_token(store: Store, tmp_path: Path) -> None:
    homes = [tmp_path / name for name in ("pod-a", "pod-b")]
    source = tmp_path / "mounted"
    texts = [new_secret("hrt")[1] for _ in range(2)]
    for home in homes:
        home.mkdir()

    for text in texts:
        source.write_text(f"{text}\n")
        for home in (*homes, homes[0]):
            ensure_home_token(store, home, now=2.0, installation="cluster:a/b", source=str(source))

            assert read_home_token(home) == text
            assert valid(store) == [hash_of(text)]
    assert [entry.action for entry in store.trail.blocking()].count("token.create") == 2


def test_a_revoked_token_of_a_file_is_not_accepted_again(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "mounted"
    id_, text = new_secret("hrt")
    source.write_text(text)
    ensure_home_token(store, tmp_path, now=1.0, source=str(source))
    store.revoke_credential.blocking(id_, revoked_at=1.5)
    for now in (2.0, 3.0):
        ensure_home_token(store, tmp_path, now=now, source=str(source))

    assert valid(store) == [hash_of(read_home_token(tmp_path))]
    assert read_home_token(tmp_path) != text


@pytest.mark.parametrize("text", ["", "hrt_nonsense", "secret"])
def test_a_file_without_a_token_is_refused(store: Store, tmp_path: Path, text: str) -> None:
    source = tmp_path / "mounted"
    source.write_text(text)
    with pytest.raises(FailedPreconditionError, match="mounted has no token"):
        ensure_home_token(store, tmp_path, now=1.0, source=str(source))


def test_a_new_token_lets_an_owner_in_who_was_kept_out(store: Store, tmp_path: Path) -> None:
    ensure_home_token(store, tmp_path, now=1.0)
    owner = store.principal.blocking(OWNER)
    assert owner is not None
    store.save_principal.blocking(msgspec.structs.replace(owner, disabled=True, roles=("viewer",)))
    (tmp_path / "admin-token").unlink()
    ensure_home_token(store, tmp_path, now=2.0)

    again = store.principal.blocking(OWNER)
    assert again is not None
    assert (again.disabled, again.roles) == (False, ("viewer", "admin"))


def test_a_home_that_cannot_be_written_is_told(store: Store, tmp_path: Path) -> None:
    with pytest.raises(FailedPreconditionError, match="cannot write the admin token"):
        ensure_home_token(store, tmp_path / "nowhere", now=1.0)
    assert read_home_token(tmp_path / "nowhere") == ""
