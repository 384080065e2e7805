"""Ways around the guard: paths that look like others."""

from collections.abc import Iterator
from typing import Final

import pytest

from tests.e2e.attacks.guarded import INFER, KEY, NARROW, Guarded, guarded

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

PATHS: Final = (
    INFER,
    "/v1/models/m:predict",
    "/v2/models/m",
    "/v2/models/m/versions/1/infer",
    "/v2/models/m/versions/9/infer",
    "/endpoints/m/",
    "/held/m/v2/models/m/infer",
    "/v2/health/../models/m/infer",
    "/v2/health/live/../../models/m/infer",
    "/v2/health/%2e%2e/models/m/infer",
    "/v2/health/.%2E/models/m/infer",
    "/v2/health/%2e%2e%2fmodels/m/infer",
    "/v2/health/..%2fmodels/m/infer",
    "/v2/health/..%5cmodels/m/infer",
    "/v2/health/..\\models/m/infer",
    "/v2/health/%252e%252e/models/m/infer",
    "/v2/health/%252e%252e%252fmodels/m/infer",
    "/v2/health/%c0%ae%c0%ae/models/m/infer",
    "/v2/health/..;/models/m/infer",
    "/v2/health/live;/../models/m/infer",
    "/v2/health/live/;x=/v2/models/m/infer",
    "/v2/health/live%00/../../models/m/infer",
    "/v2/health/live%0d%0ax-api-key:%20x",
    "/v2/health/live/",
    "/v2/health/./../models/m/infer",
    "//v2/models/m/infer",
    "/v2//models///m/infer",
    "/./v2/models/m/infer",
    "/v2/models/./m/infer",
    "/v2/models/m./infer",
    "/v2/models/m/./infer",
    "/v2/models/m;x/infer",
    "/v2/models/m;/infer",
    "/v2/models/m%20/infer",
    "/v2/models/m%00/infer",
    "/v2/models/%6d/infer",
    "/v2/models/%6D/infer",
    "/V2/models/m/infer",
    "/v2/Models/M/infer",
    "/v2/models/free/../m/infer",
    "/v2/models/free/%2e%2e/m/infer",
    "/v2/models/free%2f..%2fm/infer",
    "/v2/models/free/..;/m/infer",
    "/v2/models/free/versions/../../m/infer",
    "/v2/models/free/versions/1/../../../m/infer",
    "/v2/models/free/%252e%252e/m/infer",
    "/v2/models/m/infer?/v2/health/live",
    "/v2/models/m/infer#/v2/health/live",
    "/v2/health/live?/../../models/m/infer",
    "/v2/health/live#/../../models/m/infer",
    "http://x/v2/models/m/infer",
    "http://x/v2/health/../models/m/infer",
    "/..",
    "*",
)


@pytest.fixture(scope="module")
def site() -> Iterator[Guarded]:
    with guarded() as site:
        yield site


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "key",
    [None, pytest.param(NARROW, marks=pytest.mark.long)],
    ids=["nobody", "somebody else"],
)
def test_no_detour_leads_to_a_guarded_endpoint(site: Guarded, path: str, key: str | None) -> None:
    headers = [] if key is None else [("x-api-key", key)]
    before = site.count()

    answers = [
        site.http1(headers, path=path),
        site.http1(headers, path=path, method="GET"),
        site.http2(headers, path=path),
    ]

    assert site.count() == before, [answer.text for answer in answers]


@pytest.mark.parametrize(
    "model", ["m", "m~1", "free~/../m", "m\n", "m\x00", "../m", "free\r\nx-model: m"]
)
def test_no_name_in_a_message_leads_to_a_guarded_endpoint(site: Guarded, model: str) -> None:
    before = site.count()

    answer = site.grpc([("x-model", "m"), ("x-model-version", "1")], model=model)

    assert answer.status != 200
    assert site.count() == before


def test_a_header_names_no_other_model_than_the_message(site: Guarded) -> None:
    before = site.count()

    assert site.grpc([("x-model", "m")], model="free").status == 200
    assert site.count() == before


@pytest.mark.parametrize("headers", [[("host", "control")], [("x-envoy-original-path", INFER)]])
def test_no_header_leads_to_a_guarded_endpoint(
    site: Guarded, headers: list[tuple[str, str]]
) -> None:
    before = site.count()

    site.http1([*headers, ("x-forwarded-for", "127.0.0.1")], path="/v2/health/live")
    site.http1([*headers, ("x-original-url", INFER)], path="/v2/models/free/infer")
    site.http1([*headers, ("x-http-method-override", "GET")])

    assert site.count() == before


def test_grpc_by_a_path_that_is_open_is_not_grpc_by_another(site: Guarded) -> None:
    """The guards of a gRPC call are those of its first route."""
    before = site.count()
    grpc = [("content-type", "application/grpc"), ("te", "trailers"), ("x-model", "m")]

    for path in ("/v2/health/live", "/v2/models/free/infer", INFER, "/v2", "/"):
        site.http2(grpc, path=path)
        site.http1(grpc, path=path)

    assert site.count() == before


def test_who_may_comes_through(site: Guarded) -> None:
    before = site.count()

    assert site.http1([("x-api-key", KEY)]).status == 200
    assert site.http2([("x-api-key", KEY)]).status == 200
    assert site.grpc([("x-api-key", KEY)]).status == 200
    assert site.count() == before + 3
