"""The fake's server-side apply, by the examples of Kubernetes' own documentation and its rules."""

from typing import Any

import pytest

from tests.kubernetes_server import RefusedError, Store
from tests.kubernetes_server.fields import FieldConflictError
from tests.kubernetes_server.schemas import InvalidObjectError


def a_map(**data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": data}


def test_another_managers_field_is_a_conflict_and_may_be_forced() -> None:
    store = Store()
    store.apply(a_map(key="a"), manager="one", force=False)
    with pytest.raises(FieldConflictError):
        store.apply(a_map(key="b"), manager="two", force=False)

    assert store.apply(a_map(key="b"), manager="two", force=True)["data"] == {"key": "b"}
    assert store.apply(a_map(other="c"), manager="one", force=False)["data"] == {
        "key": "b",
        "other": "c",
    }


def test_a_shared_field_is_no_conflict() -> None:
    store = Store()
    store.apply(a_map(key="a"), manager="one", force=False)

    store.apply(a_map(key="a"), manager="two", force=False)
    assert store.apply(a_map(), manager="one", force=False)["data"] == {"key": "a"}


def test_a_field_that_its_last_manager_leaves_out_is_removed() -> None:
    store = Store()
    store.apply(a_map(key="a", other="b"), manager="one", force=False)

    assert store.apply(a_map(key="a"), manager="one", force=False)["data"] == {"key": "a"}


def test_a_field_that_somebody_else_wrote_stays() -> None:
    store = Store()
    store.apply(a_map(key="a"), manager="one", force=False)
    store.patch("ConfigMap", "m", {"data": {"theirs": "x"}})

    assert store.apply(a_map(key="b"), manager="one", force=False)["data"] == {
        "key": "b",
        "theirs": "x",
    }


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(InvalidObjectError, match="dta"):
        Store().apply({**a_map(), "dta": {}}, manager="one", force=False)


def test_an_old_version_is_refused() -> None:
    store = Store()
    old = store.create(a_map(key="a"))
    store.patch("ConfigMap", "m", {"data": {"key": "b"}})

    with pytest.raises(RefusedError, match="modified"):
        store.update(old)


def test_the_uid_of_something_that_is_gone_is_a_conflict() -> None:
    store = Store()
    config = a_map(key="a")
    config["metadata"]["uid"] = "gone"

    with pytest.raises(RefusedError, match="uid mismatch"):
        store.apply(config, manager="one", force=True)


def test_what_changes_nothing_makes_no_event() -> None:
    store = Store()
    store.apply(a_map(key="a"), manager="one", force=False)
    version = store.version
    store.apply(a_map(key="a"), manager="one", force=False)

    assert store.version == version


def test_what_is_forgotten_cannot_be_watched_from() -> None:
    store = Store()
    store.create(a_map())
    store.compact()
    store.patch("ConfigMap", "m", {"data": {"key": "b"}})

    assert len(list(store.since(store.compacted, "ConfigMap"))) == 1
    with pytest.raises(RefusedError, match="too old"):
        list(store.since(100, "ConfigMap"))
