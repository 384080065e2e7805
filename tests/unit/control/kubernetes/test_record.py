import base64
import gzip
import random

import pytest

from headrace.control.kubernetes.reconciler import record_of, routes_in
from headrace.core import FailedPreconditionError
from headrace.gateway import EndpointRoute, RevisionTarget
from tests.unit.control.kubernetes.states import PLACE

ROUTE = EndpointRoute(
    name="digits",
    timeout_s=1.0,
    arms=(
        RevisionTarget(version="1", weight=30, replicas=("10.0.0.1:8000",)),
        RevisionTarget(version="2", weight=70, replicas=()),
    ),
)


def test_a_record_holds_what_was_in_force() -> None:
    assert routes_in(record_of([ROUTE], installation=PLACE)) == (ROUTE,)


def test_the_same_routes_are_the_same_record() -> None:
    assert record_of([ROUTE], installation=PLACE) == record_of([ROUTE], installation=PLACE)


@pytest.mark.parametrize(
    "packed",
    [
        "",
        "!",
        base64.b64encode(b"no gzip").decode(),
        base64.b64encode(gzip.compress(b"{", mtime=0)).decode(),
    ],
)
def test_a_damaged_record_is_none(packed: str) -> None:
    assert routes_in({"binaryData": {"routes.json.gz": packed}}) is None


def test_no_record_is_none() -> None:
    assert routes_in(None) is None
    assert routes_in({"data": {}}) is None


def test_more_than_a_config_map_holds_is_refused_with_the_way_out() -> None:
    chance = random.Random(1)  # noqa: S311  # no secret
    arms = tuple(
        RevisionTarget(version=str(i), weight=1, replicas=(chance.randbytes(20).hex(),))
        for i in range(50_000)
    )
    route = EndpointRoute(name="large", timeout_s=None, arms=arms)

    with pytest.raises(FailedPreconditionError, match="several installations"):
        record_of([route], installation=PLACE)
