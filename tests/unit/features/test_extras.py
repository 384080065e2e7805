"""Without an extra, what needs it says how to install it, and the rest works."""

import importlib
import sys

import pytest

from headrace.core import FailedPreconditionError
from headrace.features import open_online_store


def forget(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """As if `package` were not installed, and nothing that needs it loaded."""
    monkeypatch.setitem(sys.modules, package, None)
    for name in (
        "source",
        "offline",
        "online_writers",
        "online.redis",
    ):
        monkeypatch.delitem(sys.modules, f"headrace.features.{name}", raising=False)


@pytest.mark.parametrize("name", ["join_as_of", "materialize"])
def test_without_polars_it_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    forget(monkeypatch, "polars")

    with pytest.raises(FailedPreconditionError, match=r"pip install 'headrace\[features\]'"):
        getattr(importlib.import_module("headrace.features"), name)


def test_without_redis_it_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    forget(monkeypatch, "redis")

    with pytest.raises(FailedPreconditionError, match=r"pip install 'headrace\[redis\]'"):
        open_online_store("redis://localhost")


def test_an_unknown_name_of_the_package_is_none() -> None:
    features = importlib.import_module("headrace.features")

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = features.nothing
