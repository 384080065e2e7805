"""Documents that list endpoints, for callers with and without a key."""

import httpx
import pytest

from headrace.core.spec.access import EndpointAccess
from headrace.gateway import EndpointRoute, EnvoyGateway, RevisionTarget, build_snapshot
from headrace.protocol.pages import PAGES
from tests.e2e.gateway.issuing import Issuer, api_key, known
from tests.e2e.gateway.lab import Lab, client
from tests.e2e.gateway.test_callers import EVERYWHERE

pytestmark = [pytest.mark.e2e, pytest.mark.anyio, pytest.mark.slow]
KEY = api_key("listed")


async def start(lab: Lab, **settings: str) -> EnvoyGateway:
    """Start a gateway with a public endpoint, one that `KEY` opens, and another."""
    arms = (RevisionTarget(version="1", replicas=(lab.replica("r").address,), weight=100),)
    endpoints = [
        EndpointRoute(name="open", arms=arms, access=EndpointAccess(public=True)),
        EndpointRoute(name="mine", arms=arms, access=EndpointAccess()),
        EndpointRoute(name="theirs", arms=arms, access=EndpointAccess()),
    ]
    gateway = EnvoyGateway(lab.settings(**settings))
    lab.gateways.append(gateway)
    policy = Issuer().policy(known(KEY, "infer:mine"))
    await gateway.start(build_snapshot(gateway.settings, endpoints, policy))
    return gateway


async def listed(http: httpx.AsyncClient, headers: dict[str, str]) -> list[list[str]]:
    """Return the endpoints in `/`, in its page, in `/openapi.json` and in `/v2/models`."""
    root = await http.get("/", headers=headers)
    page = await http.get("/", headers={"accept": "text/html", **headers})
    openapi = await http.get("/openapi.json", headers=headers)
    models = await http.get("/v2/models", headers=headers)
    (parameter,) = openapi.json()["paths"]["/v2/models/{name}/infer"]["parameters"]
    return [
        root.json()["endpoints"],
        [line.partition(">")[2].partition("<")[0] for line in page.text.split('href="/docs#')[1:]],
        parameter["schema"]["enum"],
        models.json()["models"],
    ]


async def test_callers_get_the_endpoints_that_they_may_use(lab: Lab) -> None:
    gateway = await start(lab)

    async with client(gateway) as http:
        assert await listed(http, {}) == [["open"]] * 4
        assert await listed(http, {"x-api-key": KEY}) == [["mine", "open"]] * 4
        wrong = await http.get("/", headers={"x-api-key": api_key("wrong")})
    assert wrong.status_code == 401


async def test_beyond_loopback_strangers_get_pages_and_public_endpoints_only(lab: Lab) -> None:
    gateway = await start(lab, host=EVERYWHERE)

    async with client(gateway) as http:
        root = await http.get("/")
        assert root.json()["endpoints"] == ["open"]
        assert "version" not in root.json()
        for page in PAGES:
            answer = await http.get(page.path)
            assert (answer.status_code, bool(answer.text)) == (200, True)
        for path in ("/openapi.json", "/v2/models", "/v2", "/nowhere", "/predict"):
            assert (await http.get(path)).status_code == 401
        assert await listed(http, {"x-api-key": KEY}) == [["mine", "open"]] * 4
