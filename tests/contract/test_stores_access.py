"""Credentials, principals and the trail, whatever database they are in."""

from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
from sqlalchemy import delete, update

from headrace.control.auth.credentials import hash_of, is_secret_of, new_secret, secret_id
from headrace.control.model.audit_log import AuditEntry, Broken, Head, Verifier
from headrace.control.model.credentials import Credential, CredentialKind, Principal
from headrace.control.state import open_store
from headrace.control.state.database import Database
from headrace.control.state.store import Store
from headrace.control.state.tables import TRAIL
from headrace.core import AlreadyExistsError, ConflictError, NotFoundError
from tests.contract.states import endpoint, rollout, state


def token(id_: str = "t1", owner: str = "ci", **changes: object) -> Credential:
    plain = Credential(
        id=id_,
        kind=CredentialKind.TOKEN,
        owner=owner,
        hash=hash_of(id_),
        created=5.0,
        created_by="ann",
        grants={"label": "für CI", "roles": ["viewer"]},
        expires=100.0,
    )
    return msgspec.structs.replace(plain, **changes)


def change(what: str = "token.create", **changes: object) -> AuditEntry:
    plain = AuditEntry(at=1.25, actor="ann", action=what, object="t1", after={"x": [1, None, "ü"]})
    return msgspec.structs.replace(plain, **changes)


def verified(store: Store) -> Broken | Head:
    verifier = Verifier()
    return verifier.read(store.trail.blocking(limit=10_000)) or verifier.head


def test_a_credential_is_found_by_id(store: Store) -> None:
    store.add_credential.blocking(token())

    assert store.credential.blocking("t1") == token()
    assert store.credential.blocking("t2") is None


def test_credentials_are_listed_by_kind_and_owner(store: Store) -> None:
    mine, other = token("t1"), token("t2", "robot", created=4.0)
    key = token("k1", kind=CredentialKind.KEY, expires=None)
    for one in (mine, other, key):
        store.add_credential.blocking(one)

    assert store.credentials.blocking(CredentialKind.TOKEN) == [other, mine]
    assert store.credentials.blocking(CredentialKind.TOKEN, "ci") == [mine]
    assert store.credentials.blocking(CredentialKind.KEY) == [key]
    assert store.credentials.blocking(CredentialKind.SESSION) == []


def test_an_id_or_a_hash_is_taken_once_and_leaves_no_trace_in_the_trail(store: Store) -> None:
    store.add_credential.blocking(token(), changes=[change()])

    with pytest.raises(AlreadyExistsError):
        store.add_credential.blocking(token(hash=hash_of("other")), changes=[change()])
    with pytest.raises(AlreadyExistsError):
        store.add_credential.blocking(token("t2", hash=hash_of("t1")), changes=[change()])
    assert store.trail_head.blocking().count == 1


def test_a_revoked_credential_stays_revoked_since_the_first_time(store: Store) -> None:
    store.add_credential.blocking(token())

    first = store.revoke_credential.blocking("t1", revoked_at=7.0, changes=[change("token.revoke")])
    again = store.revoke_credential.blocking("t1", revoked_at=8.0)
    store.renew_credential.blocking("t1", expires=1000.0)

    assert first == again == store.credential.blocking("t1") == token(revoked=7.0)
    assert [entry.action for entry in store.trail.blocking()] == ["token.revoke"]
    with pytest.raises(NotFoundError):
        store.revoke_credential.blocking("t2", revoked_at=7.0, changes=[change("token.revoke")])
    assert store.trail_head.blocking().count == 1


def test_a_renewed_credential_expires_later(store: Store) -> None:
    store.add_credential.blocking(token())
    store.renew_credential.blocking("t1", expires=200.0)

    found = store.credential.blocking("t1")
    assert found is not None
    assert found.is_valid(150.0)
    assert not found.is_valid(200.0)


def test_expired_sessions_are_forgotten_and_nothing_else(store: Store) -> None:
    session = token("s1", kind=CredentialKind.SESSION, expires=10.0)
    for one in (session, token("s2", kind=CredentialKind.SESSION, expires=30.0)):
        store.add_credential.blocking(one)
    store.add_credential.blocking(token("t1", expires=10.0))
    store.forget_before.blocking(20.0)

    assert [one.id for one in store.credentials.blocking(CredentialKind.SESSION)] == ["s2"]
    assert [one.id for one in store.credentials.blocking(CredentialKind.TOKEN)] == ["t1"]


def test_a_principal_is_replaced_by_name(store: Store) -> None:
    ann = Principal(name="ann", kind="user", created=1.0, roles=("viewer",), created_by="bob")
    robot = Principal(name="robot", kind="service", created=2.0)
    changed = msgspec.structs.replace(ann, roles=("operator:fraud",), disabled=True)
    for one in (robot, ann, changed):
        store.save_principal.blocking(one, changes=[change("user.grant")])

    assert store.principals.blocking() == [changed, robot]
    assert store.principal.blocking("ann") == changed
    assert store.principal.blocking("eve") is None
    assert store.trail_head.blocking().count == 3


def test_the_trail_is_a_chain_over_all_transactions(url: str, store: Store) -> None:
    store.save.blocking(
        state(1, endpoint("a")), timestamp=1.0, reason="applied", changes=[change("apply")]
    )
    store.save_rollout.blocking(
        rollout(), changes=[change("rollout.start"), change("rollout.promote")]
    )
    store.add_changes.blocking(
        [change("model.push", before=None, object="m\x00:1", at=1764000000.123457)]
    )
    other = open_store(url)
    entries = other.trail.blocking()
    other.close()

    assert [entry.id for entry in entries] == [1, 2, 3, 4]
    assert [entry.previous for entry in entries] == ["", *(e.hash for e in entries[:-1])]
    assert entries[0].after == '{"x":[1,null,"ü"]}'
    assert verified(store) == Head(count=4, hash=entries[-1].hash) == store.trail_head.blocking()


def test_what_was_not_changed_is_not_in_the_trail(store: Store) -> None:
    store.save.blocking(
        state(1, endpoint("a")), timestamp=1.0, reason="applied", changes=[change()]
    )
    with pytest.raises(ConflictError):
        store.save.blocking(
            state(1, endpoint("a")), timestamp=1.0, reason="applied", changes=[change()]
        )
    stored = store.save_rollout.blocking(rollout())
    with pytest.raises(ConflictError):
        store.save_rollout.blocking(msgspec.structs.replace(stored, revision=9), changes=[change()])

    assert store.trail_head.blocking().count == 1


def test_the_trail_is_read_in_parts(store: Store) -> None:
    store.add_changes.blocking([change(object=str(number)) for number in range(5)])

    assert [e.object for e in store.trail.blocking(after=1, limit=2)] == ["1", "2"]
    assert [e.object for e in store.trail.blocking(limit=2, newest=True)] == ["3", "4"]
    assert store.trail.blocking(after=5) == []


def test_whoever_edits_the_trail_is_found_out(url: str, store: Store) -> None:
    store.add_changes.blocking([change(object=str(number)) for number in range(4)])
    database = Database(url)
    with database.writing("tamper") as connection:
        connection.execute(update(TRAIL).where(TRAIL.c.id == 3).values(actor="somebody else"))
    edited = verified(store)
    with database.writing("tamper") as connection:
        connection.execute(delete(TRAIL).where(TRAIL.c.id == 2))
    removed = verified(store)
    database.close()

    assert edited == Broken(id=3, reason="its content is not what was written")
    assert removed == Broken(id=2, reason="it is missing")


def test_a_cut_trail_shows_as_soon_as_something_is_added(url: str, store: Store) -> None:
    store.add_changes.blocking([change(object=str(number)) for number in range(4)])
    database = Database(url)
    with database.writing("tamper") as connection:
        connection.execute(delete(TRAIL).where(TRAIL.c.id == 4))
    database.close()
    store.add_changes.blocking([change(object="later")])

    assert verified(store) == Broken(id=4, reason="it is missing")


def test_writers_at_the_same_time_make_one_chain(url: str, store: Store) -> None:
    def write(name: str) -> None:
        mine = open_store(url)
        for number in range(10):
            mine.add_changes.blocking([change(actor=name, object=str(number))])
        mine.close()

    with ThreadPoolExecutor() as pool:
        list(pool.map(write, ["ann", "bob"]))

    head = verified(store)
    assert isinstance(head, Head)
    assert head.count == 20


def test_a_new_secret_tells_its_id_and_is_known_by_its_hash() -> None:
    id_, text = new_secret("hrt")
    made = token(id_, hash=hash_of(text))

    assert secret_id("hrt", text) == id_
    assert is_secret_of(made, text)
    assert not is_secret_of(made, text[:-1] + ("A" if text[-1] != "A" else "B"))
    assert secret_id("hr", text) is None
    assert secret_id("hrt", f"{text}x") is secret_id("hrt", "hrt_é") is None
