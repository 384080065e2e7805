"""The playground sends chats to its own endpoint only, and the usage page adds up and prices."""

import json

import httpx
import pytest

from headrace.console.usage import TokenPrices, cost_text, prices_of, sums_by
from headrace.control.base.context import Addresses
from headrace.control.model.records import TokenReading
from headrace.control.plane.control_plane import ControlPlane
from headrace.gateway.statistics import TokenUse
from tests.unit.console.browser import hidden_of, visitor_of
from tests.unit.control.api_client import client_of

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

CHAT = "/endpoints/chat/chat"
NOWHERE = Addresses(http_url="http://127.0.0.1:1", grpc_target="", metrics_url="", admin_url="")
"""A port of this machine that nobody listens on: the lowest one."""
SENT = {
    "messages": json.dumps([{"role": "user", "content": "Hello!"}]),
    "max_tokens": "16",
    "temperature": "0.5",
}


@pytest.fixture
async def chats(plane: ControlPlane) -> ControlPlane:
    """Endpoints `chat` and `other` on a server of OpenAI's API, and `numbers` on another one."""
    upstream = {"url": "http://10.0.0.1:8000", "protocol": "openai"}
    async with client_of(plane) as api:
        for name, one in (
            ("chat", upstream),
            ("other", upstream),
            ("numbers", {"url": "http://10.0.0.1:8000"}),
        ):
            put = await api.put(f"/endpoints/{name}", json={"upstream": one})
            assert put.status_code == 201, put.text
    return plane


def error_of(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["message"]


async def test_only_language_models_have_a_playground(chats: ControlPlane) -> None:
    async with visitor_of(chats, "viewer:chat", "viewer:numbers") as visitor:
        page = await visitor.get(CHAT)
        assert page.status_code == 200
        assert "/v1/chat/completions" in page.text
        endpoint = (await visitor.get("/endpoints/chat")).text
        assert f'href="{CHAT}"' in endpoint
        assert "/endpoints/chat/try" not in endpoint
        assert (await visitor.get("/endpoints/numbers/chat")).status_code == 404
        assert "/endpoints/numbers/chat" not in (await visitor.get("/endpoints/numbers")).text
        assert (await visitor.get("/endpoints/other/chat")).status_code in {403, 404}


@pytest.mark.parametrize(
    ("changed", "status", "says"),
    [
        ({"csrf_token": "forged"}, 403, "does not belong to your session"),
        ({"version": "7"}, 400, "'chat' has no version '7'"),
        ({"version": "other"}, 400, "has no version"),
        ({"messages": "Hello!"}, 400, "a JSON list of role and content"),
        ({"messages": "[]"}, 400, "1 to 200 messages"),
        ({"messages": '[{"role": "user", "content": "a", "model": "other"}]'}, 400, "JSON list"),
        ({"max_tokens": "0"}, 400, "`max_tokens`"),
        ({"max_tokens": "many"}, 400, "`max_tokens`"),
        ({"temperature": "nan"}, 400, "a number"),
        ({"temperature": '0, "model": "other"'}, 400, "`temperature`"),
    ],
)
async def test_a_wrong_chat_is_refused_in_the_form_of_openai(
    chats: ControlPlane, changed: dict[str, str], status: int, says: str
) -> None:
    async with visitor_of(chats, "viewer:chat") as visitor:
        form = {**hidden_of((await visitor.get(CHAT)).text), **SENT, **changed}
        code, message = error_of(await visitor.post(CHAT, data=form))
    assert code == status
    assert says in message


@pytest.mark.parametrize("addresses", [NOWHERE])
async def test_a_chat_without_a_gateway_says_so(chats: ControlPlane) -> None:
    async with visitor_of(chats, "viewer:chat") as visitor:
        form = {**hidden_of((await visitor.get(CHAT)).text), **SENT}
        code, message = error_of(await visitor.post(CHAT, data=form))
        elsewhere = await visitor.post("/endpoints/other/chat", data=form)
    assert (code, message.partition(":")[0]) == (502, "the gateway does not answer")
    assert elsewhere.status_code in {403, 404}


def row(**values: object) -> TokenUse:
    usual: dict[str, object] = {"day": "2026-11-25", "endpoint": "chat", "version": "1"}
    return TokenUse(**usual | {"credential": ""} | values)  # type: ignore[arg-type]


def test_cached_tokens_cost_as_other_input_unless_they_have_a_price() -> None:
    used = row(input=2_000_000, cached=500_000, output=1_000_000)

    assert TokenPrices().cost(used) is None
    assert TokenPrices(input=2, output=10).cost(used) == pytest.approx(14)
    assert TokenPrices(input=2, cached=0.2, output=10).cost(used) == pytest.approx(13.1)
    assert TokenPrices(output=10).cost(used) == pytest.approx(10)


def test_texts_that_are_no_price_are_ignored() -> None:
    query = {"input.chat": "2,5", "cached.chat": "-1", "output.chat": "nan", "input.b": "x"}

    assert prices_of(query, "chat") == TokenPrices(input=2.5)
    assert prices_of(query, "b") == TokenPrices()


def test_sums_have_the_tokens_and_costs_of_their_rows() -> None:
    rows = [
        (row(credential="key:a", input=3, output=1), 0.5),
        (row(credential="key:a", input=4, cached=2, unknown=1), None),
        (row(output=7), None),
    ]
    nobody, alice = sums_by(rows, "credential")

    assert (nobody.name, nobody.tokens.output, cost_text(nobody.cost)) == ("", 7, "-")
    used = alice.tokens
    assert (used.input, used.cached, used.output, used.unknown) == (7, 2, 1, 1)
    assert cost_text(alice.cost) == "0.50"
    assert [(total.tokens.input, total.cost) for total in sums_by(rows)] == [(7, 0.5)]
    assert cost_text(0.0123) == "0.0123"


async def test_the_page_shows_used_tokens_and_a_cost(chats: ControlPlane) -> None:
    day = "2026-11-25"
    used = TokenUse(
        day=day, endpoint="chat", version="1", credential="key:<b>", input=1_500_000, output=7
    )
    reading = TokenReading(epoch="e", counts=())
    chats.store.add_tokens.blocking([used], "local", reading)
    async with visitor_of(chats) as visitor:
        page = await visitor.get("/usage", params={"days": "365", "input.chat": "2"})
    assert page.status_code == 200
    text = page.text
    assert "1,500,000" in text
    assert "key:&lt;b&gt;" in text
    assert "3.00" in text
    assert 'href="/api/v1/usage?format=csv&amp;first=' in text
