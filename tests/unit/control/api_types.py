"""Types of the management API, read once for all tests instead of once for each application."""

from collections.abc import Iterator
from typing import Any, Final, get_args

import fastapi._compat.v2 as fields
import pytest
from pydantic import ConfigDict, TypeAdapter

_ADAPTERS: Final[dict[tuple[object, str], TypeAdapter[Any]]] = {}


@pytest.fixture(scope="session", autouse=True)
def types_are_read_once() -> Iterator[None]:
    """FastAPI reads the types of 75 routes for each application: 0.3 s, in tests of 0.03 s."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fields, "TypeAdapter", _adapter)
        yield


def _adapter(annotated: type[Any], config: ConfigDict | None) -> TypeAdapter[Any]:
    kind, *metadata = get_args(annotated)
    key = (kind, repr((metadata, config)))
    if key not in _ADAPTERS:
        _ADAPTERS[key] = TypeAdapter(annotated, config=config)
    return _ADAPTERS[key]
