"""Whatever the management API's own description allows to be asked, it has an answer to."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import APIOperation, Case
from schemathesis.core.result import Ok

from headrace.control.api.app import build_api
from headrace.control.auth.gatekeeper import RULES
from headrace.control.gateway import supervisor as keeper
from headrace.control.plane.control_plane import ControlPlane
from tests.unit.control.api_client import access_of, headers_of

pytestmark = pytest.mark.slow
URL = "http://localhost:8080"
EXAMPLES = 6
OPEN = {path for (_, path), rule in RULES.items() if rule.is_public}
WAITS = ("wait_s", "follow")
"""Parameters that make a request last."""


class Asker:
    """Asks the API over ASGI in one event loop, as an admin or as nobody."""

    def __init__(self, plane: ControlPlane) -> None:
        self._runner = asyncio.Runner()
        app = build_api(plane, access_of(plane), allowed_hosts=frozenset())
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        self._client = httpx.AsyncClient(transport=transport, base_url=URL)
        self.admin = headers_of(plane)
        self.schema: dict[str, Any] = self.ask(
            "GET", "/api/v1/openapi.json", headers=self.admin
        ).json()

    def ask(self, method: str, url: str, **how: Any) -> httpx.Response:  # noqa: ANN401  # httpx's
        return self._runner.run(self._client.request(method, url, **how))

    def send(self, case: Case[Any], headers: dict[str, str]) -> httpx.Response:
        told = case.as_transport_kwargs(base_url=URL)
        query = {key: v for key, v in (told.get("params") or {}).items() if key not in WAITS}
        given_headers = {
            key: str(value).encode("utf-8", "replace")
            for key, value in (told.get("headers") or {}).items()
            if key.lower() not in {"authorization", "cookie"}
        }
        body = {"json": told["json"]} if "json" in told else {"content": told.get("data")}
        if not isinstance(body.get("content", b""), bytes | str):
            body = {"content": str(body["content"])}
        return self.ask(
            told["method"], told["url"], params=query, headers={**given_headers, **headers}, **body
        )

    def operations(self) -> Iterator[APIOperation[Any, Any, Any, Any]]:
        for found in schemathesis.openapi.from_dict(self.schema).get_all_operations():
            assert isinstance(found, Ok)
            yield found.ok()

    def close(self) -> None:
        self._runner.run(self._client.aclose())
        self._runner.close()


@pytest.fixture
def asker(plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> Iterator[Asker]:
    monkeypatch.setattr(keeper, "_UP_TIMEOUT_S", 0.0)  # no gateway runs here, so keys get a 503
    plane.stop_requested.set()  # streams end at once
    asker = Asker(plane)
    yield asker
    asker.close()


def test_no_request_makes_the_api_fail(asker: Asker) -> None:
    codes: dict[str, set[int]] = {}

    for operation in asker.operations():

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
            derandomize=True,
        )
        @given(case=operation.as_strategy())
        def ask(case: Case[Any]) -> None:
            answer = asker.send(case, asker.admin)
            codes.setdefault(case.operation.label, set()).add(answer.status_code)
            # What is shown there as a token is none, whoever else the caller is.
            refusals = {401} if case.operation.path == "/auth/token" else set()
            assert answer.status_code not in {401, 403, 500} - refusals, answer.text
            if answer.status_code >= 400:
                assert answer.headers["content-type"] == "application/problem+json"

        ask()

    assert len(codes) == len(RULES) - 1  # all but the description itself
    assert any(200 in found for found in codes.values())


def test_without_a_token_every_route_but_the_open_ones_is_closed(asker: Asker) -> None:
    closed = 0

    for operation in asker.operations():

        @settings(
            max_examples=3,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
            derandomize=True,
        )
        @given(case=operation.as_strategy())
        def ask(case: Case[Any]) -> None:
            assert asker.send(case, {}).status_code == 401

        if operation.path not in OPEN:
            ask()
            closed += 1

    assert closed == len(RULES) - len(OPEN) - 1
    assert asker.ask("GET", "/api/v1/openapi.json").status_code == 401


def test_the_description_says_which_role_each_route_needs(asker: Asker) -> None:
    told = {
        (method.upper(), path): (operation["security"], operation.get("x-headrace-role"))
        for path, operations in asker.schema["paths"].items()
        for method, operation in operations.items()
    }

    assert told["GET", "/api/v1/health"] == ([], None)
    assert told["POST", "/api/v1/stop"] == ([{"token": []}], "admin")
    assert told["PUT", "/api/v1/endpoints/{name}"] == ([{"token": []}], "operator of the endpoint")
    assert told["GET", "/api/v1/whoami"] == ([{"token": []}], "any")
