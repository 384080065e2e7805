"""OpenAI's API on the gateway: routes by the body's model, streams, tokens, errors."""

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.core.spec.access import (
    AliasSpec,
    EndpointAccess,
    EndpointLimitsSpec,
    LimitSpec,
    TokenWeightsSpec,
)
from headrace.core.spec.upstream import UpstreamProtocol, UpstreamSpec
from headrace.gateway import (
    ArmStatistics,
    EndpointRoute,
    EnvoyGateway,
    GatewayPolicy,
    MirrorTarget,
    RevisionTarget,
    build_snapshot,
)
from headrace.gateway.statistics import TokenUse
from headrace.gateway.tls import api_key_name, api_key_secret
from tests.e2e.gateway.issuing import Issuer, api_key, known
from tests.e2e.gateway.lab import UP_WITHIN_S, Lab, client, http_url
from tests.e2e.gateway.openai_stub import events_of, usage_of
from tests.e2e.gateway.test_rate_limits import service
from tests.ports import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.anyio, pytest.mark.slow]
CHAT = "/v1/chat/completions"
MODEL = "their/model"
MESSAGES = [{"role": "user", "content": 'say "model": "other", [ { \\ } ] é \u2028'}]
KEY = api_key("llm")


@dataclass(frozen=True)
class Stub:
    """A running stub."""

    port: int

    def upstream(self, **changes: Any) -> UpstreamSpec:
        values: dict[str, Any] = {
            "url": f"http://127.0.0.1:{self.port}",
            "protocol": UpstreamProtocol.OPENAI,
            "model": MODEL,
            "health_path": None,
            **changes,
        }
        return UpstreamSpec(**values)

    def seen(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = httpx.get(f"http://127.0.0.1:{self.port}/seen").json()
        return found


@contextlib.contextmanager
def running_stub(where: str, model: str, times_slower: float = 1.0) -> Iterator[None]:
    """A stub at a port or a socket's path, until the end of the block."""
    script = Path(__file__).with_name("openai_stub.py")
    process = subprocess.Popen([sys.executable, str(script), where, model, str(times_slower)])
    try:
        until = time.monotonic() + UP_WITHIN_S
        while True:
            kind = socket.AF_INET if where.isdigit() else socket.AF_UNIX
            with contextlib.suppress(OSError), socket.socket(kind) as trial:
                trial.connect(("127.0.0.1", int(where)) if where.isdigit() else where)
                break
            assert time.monotonic() < until, "the stub does not come up"
            time.sleep(0.02)
        yield
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def stub() -> Iterator[Stub]:
    port = free_port()
    with running_stub(str(port), MODEL):
        yield Stub(port)


def endpoint(name: str, upstream: UpstreamSpec, **changes: Any) -> EndpointRoute:
    arm = RevisionTarget(version="2", replicas=(), weight=100, upstream=upstream)
    return EndpointRoute(name=name, arms=(arm,), **{"timeout_s": 10.0, **changes})


@contextlib.asynccontextmanager
async def started(lab: Lab, *endpoints: EndpointRoute) -> AsyncIterator[httpx.AsyncClient]:
    gateway = await lab.start(*endpoints)
    async with client(gateway) as http:
        yield http


async def tokens(gateway: EnvoyGateway) -> dict[tuple[str, str, str], TokenUse]:
    """Counts by endpoint, version and credential."""
    counts = (await gateway.token_statistics()).counts
    return {use.key[1:]: TokenUse().plus(use) for use in counts}


def texts(stream: str) -> list[str]:
    """The events of a stream, decoded where they are JSON."""
    return [event.removeprefix("data: ") for event in stream.split("\n\n") if event]


async def test_the_model_of_the_body_is_the_endpoint(lab: Lab, stub: Stub) -> None:
    replica = lab.replica("plain")
    plain = RevisionTarget(version="1", replicas=(replica.address,), weight=100)
    async with started(
        lab,
        endpoint("chat", stub.upstream()),
        endpoint("chat.long-name_2", stub.upstream()),
        EndpointRoute(name="numbers", arms=(plain,)),
    ) as http:
        for model in ("chat", "chat:2", "chat.long-name_2"):
            for path in (CHAT, "/v1/completions", "/v1/embeddings", "/v1/rerank", "/v2/rerank"):
                body = {"messages": MESSAGES, "model": model}
                answer = await http.post(path, json=body, headers={"x-model": "numbers"})
                assert answer.status_code == 200, answer.text
                told = stub.seen()[-1]
                assert told["path"] == path
                assert told["body"] == {"messages": MESSAGES, "model": MODEL, "stub": {}}
        both = (await http.get("/v1/models")).json()
        one = (await http.get("/v1/models/chat")).json()

    assert both["models"] == ["chat", "chat.long-name_2", "numbers"]
    assert [model["id"] for model in both["data"]] == ["chat", "chat.long-name_2"]
    assert one == both["data"][0]


AS_JSON = {"content-type": "application/json"}
ALIASES = (AliasSpec(name="gpt-4o-mini"), AliasSpec(name="openai/gpt:x", version="2"))


async def test_an_alias_in_the_body_becomes_the_name_it_stands_for(lab: Lab, stub: Stub) -> None:
    both = (
        RevisionTarget(version="1", replicas=(), weight=100, upstream=stub.upstream()),
        RevisionTarget(version="2", replicas=(), weight=0, upstream=stub.upstream(model="none")),
    )
    route = EndpointRoute(name="chat", arms=both, timeout_s=10.0, aliases=ALIASES)
    async with started(lab, route, endpoint("other", stub.upstream())) as http:
        for text in (
            '{"model":"gpt-4o-mini","a":1}',
            '{"a": "\\"model\\"", "model" : "gpt-4o-mini"}',
        ):
            answer = await http.post(CHAT, content=text, headers=AS_JSON)
            assert answer.status_code == 200
            sent = stub.seen()[-1]["body"]
            assert sent == {**json.loads(text), "model": MODEL, "stub": {}}
        streamed = {"model": "gpt-4o-mini", "messages": MESSAGES, "stream": True}
        assert texts((await http.post(CHAT, json=streamed)).text)[-1] == "[DONE]"
        answers = {
            name: await http.post(CHAT, json={"model": name, "messages": MESSAGES})
            for name in ("openai/gpt:x", "gpt-4o", "gpt-4o-mini:2")
        }
        escaped = '{"model":"openai\\/gpt:x"}'
        php = await http.post(CHAT, content=escaped, headers=AS_JSON)
        heard = await http.post(
            "/v1/audio/transcriptions",
            data={"model": "gpt-4o-mini"},
            files={"file": ("a.wav", b"x")},
        )
        told = stub.seen()[-1]["form"]
        listed = (await http.get("/v1/models")).json()
        described = (await http.get("/v1/models/gpt-4o-mini")).json()

    assert answers["openai/gpt:x"].json()["error"]["message"] == "no model none"
    assert php.json() == answers["openai/gpt:x"].json()
    assert [answers[name].status_code for name in ("gpt-4o", "gpt-4o-mini:2")] == [404, 404]
    assert heard.status_code == 200
    assert f"\r\n\r\n{MODEL}\r\n" in told
    assert listed["models"] == ["chat", "other"]
    ids = [model["id"] for model in listed["data"]]
    assert ids == ["chat", "gpt-4o-mini", "openai/gpt:x", "other"]
    assert described == listed["data"][1]


async def test_a_replica_gets_the_name_that_an_alias_stands_for(lab: Lab) -> None:
    replica = lab.replica("llm")
    with running_stub(f"{replica.address.removeprefix('unix:')}.openai", "chat:1"):
        arm = RevisionTarget(version="1", replicas=(replica.address,), weight=100, openai=True)
        aliases = (AliasSpec(name="gpt", version="1"),)
        route = EndpointRoute(name="chat", arms=(arm,), timeout_s=10.0, aliases=aliases)
        async with started(lab, route) as http:
            answer = await http.post(CHAT, json={"model": "gpt", "messages": MESSAGES})

    assert answer.status_code == 200, answer.text


async def test_a_caller_sees_the_aliases_of_its_endpoints(lab: Lab, stub: Stub) -> None:
    """An alias is authorized as its endpoint is."""
    other = api_key("other")
    routes = (
        endpoint("chat", stub.upstream(), access=EndpointAccess(), aliases=ALIASES),
        endpoint("other", stub.upstream(), access=EndpointAccess()),
    )
    gateway = EnvoyGateway(lab.settings())
    lab.gateways.append(gateway)
    policy = GatewayPolicy(keys=(known(KEY), known(other, "infer:other")))
    await gateway.start(build_snapshot(gateway.settings, routes, policy))
    ids, statuses = {}, {}
    async with client(gateway) as http:
        for key in (KEY, other):
            headers = {"authorization": f"Bearer {key}"}
            models = (await http.get("/v1/models", headers=headers)).json()["data"]
            ids[key] = [model["id"] for model in models]
            body = {"model": "gpt-4o-mini", "messages": MESSAGES}
            statuses[key] = (await http.post(CHAT, json=body, headers=headers)).status_code

    assert ids == {KEY: ["chat", "gpt-4o-mini", "openai/gpt:x", "other"], other: ["other"]}
    assert statuses == {KEY: 200, other: 403}


async def test_the_key_of_an_upstream_reaches_no_other_server(lab: Lab, stub: Stub) -> None:
    """The key is added for one attempt at one server: copies and other versions do not get it."""
    keyed = stub.upstream(api_key_file="/never/read", health_path=None)
    other = stub.upstream(url=f"http://127.0.0.1:{stub.port}/copy")
    arms = (
        RevisionTarget(version="1", replicas=(), weight=100, upstream=keyed),
        RevisionTarget(version="2", replicas=(), weight=0, upstream=other),
    )
    mirror = MirrorTarget(key="2", percent=100)
    route = EndpointRoute(name="chat", arms=arms, timeout_s=10.0, mirror=mirror)
    gateway = EnvoyGateway(lab.settings())
    lab.gateways.append(gateway)
    gateway.settings.run_dir.mkdir(mode=0o700)
    gateway.secrets.write(api_key_secret(api_key_name(keyed), "sk-of-one"))
    await gateway.start(build_snapshot(gateway.settings, [route]))
    before = len(stub.seen())
    async with client(gateway) as http:
        for model in ("chat", "chat:2"):
            body = {"model": model, "messages": MESSAGES}
            headers = {"authorization": "Bearer sk-callers"}
            assert (await http.post(CHAT, json=body, headers=headers)).status_code == 200
    deadline = time.monotonic() + 5
    while len(seen := stub.seen()[before:]) < 3:  # a copy may arrive after the answer
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)

    keys = sorted((told["path"], told["headers"].get("authorization", "")) for told in seen)
    copy = f"/copy{CHAT}"
    callers = (copy, "Bearer sk-callers")
    assert keys == [callers, callers, (CHAT, "Bearer sk-of-one")]


async def test_replicas_serve_openai_on_a_second_socket(lab: Lab) -> None:
    replica = lab.replica("llm")
    socket_path = f"{replica.address.removeprefix('unix:')}.openai"
    arm = RevisionTarget(version="1", replicas=(replica.address,), weight=100, openai=True)
    route = EndpointRoute(name="chat", arms=(arm,), timeout_s=10.0, split_id="r1")
    with running_stub(socket_path, "chat"):
        gateway = await lab.start(route)
        async with client(gateway) as http:
            answer = await http.post(CHAT, json={"model": "chat"})
            assert answer.json()["object"] == "chat.completion", answer.text
            assert (await http.get("/v2/models/chat")).json()["replica"] == "llm"
        counted = (await gateway.arm_statistics(["chat"])).arms
        assert {arm: one.requests for arm, one in counted.items()} == {("chat", "1"): 2}
        assert set(await gateway.in_flight()) == {("chat", "1")}
        assert set(await tokens(gateway)) == {("chat", "1", "")}


async def test_a_form_with_files_names_its_model_too(lab: Lab, stub: Stub) -> None:
    async with started(lab, endpoint("speech", stub.upstream())) as http:
        file = {"file": ("a.wav", b"RIFF\r\nmodel")}
        answer = await http.post("/v1/audio/transcriptions", files=file, data={"model": "speech"})
        told = stub.seen()[-1]
        # A file that holds a form, in front of the model's name.
        name = b'Content-Disposition: form-data; name="model"\r\n\r\n'
        inner = b"--x\r\n" + name + b"other\r\n--x--\r\n"
        file_head = b'Content-Disposition: form-data; name="file"; filename="a; name=model"\r\n\r\n'
        parts = (file_head + inner, name + b"speech")
        form = b"".join(b"--out.er\r\n" + part + b"\r\n" for part in parts) + b"--out.er--\r\n"
        as_form = {"content-type": 'multipart/form-data; boundary="out.er"'}
        again = await http.post("/v1/audio/transcriptions", content=form, headers=as_form)
        lacking = await http.post(
            "/v1/audio/transcriptions", content=form.replace(parts[1], b"\r\n\r\n"), headers=as_form
        )

    assert answer.json()["text"] == again.json()["text"] == "hello"
    assert stub.seen()[-1]["form"].encode() == form.replace(b"speech", MODEL.encode())
    assert "you must provide a model" in lacking.json()["error"]["message"]
    assert f'name="model"\r\n\r\n{MODEL}\r\n' in told["form"]
    assert len(told["form"]) == int(told["headers"]["content-length"])


WRONG: tuple[tuple[bytes, int, str | None, str], ...] = (
    (b"", 400, None, "the request has no body"),
    (b"{", 400, None, "not a JSON object"),
    (b"[]", 400, None, "not a JSON object"),
    (b'{"model": "chat"} x', 400, None, "not a JSON object"),
    (b'{"model": "chat", "model": "other"}', 400, None, "not a JSON object"),
    (b'{"mod\\u0065l": "chat"}', 400, None, "not a JSON object"),
    (b'{"model": "chat', 400, None, "not a JSON object"),
    (b'{"messages": [}', 400, None, "not a JSON object"),
    (b'{"messages": []}', 400, None, "you must provide a model"),
    (b'{"model": 3}', 400, None, "you must provide a model"),
    (b'{"model": ""}', 404, "model_not_found", "does not exist"),
    (b'{"model": "a\\r\\nx-b: c"}', 404, "model_not_found", "does not exist"),
    (b'{"model": "other"}', 404, "model_not_found", "'other' is not found"),
    (b'{"model": "chat:9"}', 404, "model_not_found", "'chat' version 9 is not found"),
    (b'{"model": "numbers"}', 404, "model_not_found", "'numbers' is not found"),
)


async def test_wrong_bodies_get_errors_in_the_shape_of_openai(lab: Lab, stub: Stub) -> None:
    before = len(stub.seen())
    numbers = endpoint("numbers", stub.upstream(protocol=UpstreamProtocol.V2))
    async with started(lab, endpoint("chat", stub.upstream()), numbers) as http:
        kind = {"content-type": "application/json"}
        for body, status, code, says in WRONG:
            answer = await http.post(CHAT, content=body, headers=kind)
            error = answer.json()["error"]
            assert (body, answer.status_code, error["code"]) == (body, status, code)
            assert says in error["message"]
            assert (error["type"], error["param"]) == ("invalid_request_error", None)
        assert (await http.get(CHAT)).status_code == 405
    assert len(stub.seen()) == before


async def test_credentials_are_checked_for_the_model_of_the_body(lab: Lab, stub: Stub) -> None:
    gateway = EnvoyGateway(lab.settings())
    lab.gateways.append(gateway)
    closed = [
        endpoint(name, stub.upstream(), access=EndpointAccess()) for name in ("mine", "theirs")
    ]
    open_ = endpoint("open", stub.upstream(), access=EndpointAccess(public=True))
    policy = Issuer().policy(known(KEY, "infer:mine", name="alice"))
    await gateway.start(build_snapshot(gateway.settings, [*closed, open_], policy))

    async def ask(model: str, key: str = "") -> tuple[int, Any]:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        answer = await http.post(CHAT, json={"model": model}, headers=headers)
        return answer.status_code, answer.json().get("error", {}).get("code")

    async with client(gateway) as http:
        assert await ask("mine", KEY) == (200, None)
        assert "authorization" not in stub.seen()[-1]["headers"]
        assert await ask("open") == (200, None)
        assert await ask("mine") == (401, "invalid_api_key")
        assert await ask("mine", api_key("wrong")) == (401, "invalid_api_key")
        assert await ask("theirs", KEY) == (403, None)
        assert await ask("nowhere", KEY) == (403, None)
        assert await ask("nowhere") == (401, "invalid_api_key")
        listed = (await http.get("/v1/models", headers={"x-api-key": KEY})).json()
        assert [model["id"] for model in listed["data"]] == ["mine", "open"]
        assert listed["models"] == ["mine", "open"]
    counted = await tokens(gateway)
    assert set(counted) == {("mine", "2", "key:alice"), ("open", "2", "")}


JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


async def test_only_the_model_of_a_body_is_changed(lab: Lab, stub: Stub) -> None:
    gateway = await lab.start(endpoint("chat", stub.upstream()))

    @settings(deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        before=st.dictionaries(st.text(), JSON, max_size=4),
        after=st.dictionaries(st.text(), JSON, max_size=4),
        ascii_only=st.booleans(),
        indent=st.none() | st.integers(0, 3),
    )
    def law(
        before: dict[str, Any], after: dict[str, Any], ascii_only: bool, indent: int | None
    ) -> None:
        known_names = {"model", "stream", "stub", "stream_options", "messages"}
        names = {*before, *after}
        if names & known_names or any(
            "\\" in json.dumps(n, ensure_ascii=ascii_only) for n in names
        ):
            return  # a name with an escape is refused
        body = {**before, "model": "chat", **after}
        content = json.dumps(body, ensure_ascii=ascii_only, indent=indent)
        try:
            raw = content.encode()
        except UnicodeEncodeError:
            return
        answer = httpx.post(
            http_url(gateway, CHAT), content=raw, headers={"content-type": "application/json"}
        )
        assert answer.status_code == 200, (raw, answer.text)
        assert stub.seen()[-1]["body"] == {**body, "model": MODEL, "stub": {}}

    await asyncio.to_thread(law)


async def test_a_body_beyond_the_buffer_of_a_connection_passes(lab: Lab, stub: Stub) -> None:
    async with started(lab, endpoint("chat", stub.upstream())) as http:
        picture = "x" * (3 << 20)
        answer = await http.post(CHAT, json={"messages": picture, "model": "chat"})
    assert answer.status_code == 200, answer.text
    assert len(stub.seen()[-1]["body"]["messages"]) == len(picture)


async def test_a_stream_is_passed_without_the_usage_that_nobody_asked_for(
    lab: Lab, stub: Stub
) -> None:
    asked: tuple[dict[str, Any], ...] = (
        {},
        {"stream_options": None},
        {"stream_options": {}},
        {"stream_options": {"a": 1}},
        {"stream_options": {"include_usage": False}},
        {"stream_options": {"include_usage": True}},
    )
    gateway = await lab.start(endpoint("chat", stub.upstream()))
    total = TokenUse()
    async with client(gateway) as http:
        for options, piece in product(asked, (1, 7, 60, 400, 100_000)):
            told = {"tokens": 5, "piece": piece}
            body = {"model": "chat", "messages": MESSAGES, "stream": True, "stub": told, **options}
            answer = await http.post(CHAT, json=body)

            wanted = {**body, "model": MODEL}
            assert texts(answer.text) == texts(b"".join(events_of(wanted)).decode())
            sent = stub.seen()[-1]["body"]["stream_options"]
            assert sent == {**(options.get("stream_options") or {}), "include_usage": True}
            usage = usage_of(wanted)
            total = TokenUse(
                input=total.input + usage["prompt_tokens"],
                cached=total.cached + usage["prompt_tokens_details"]["cached_tokens"],
                output=total.output + 5,
                reasoning=total.reasoning + 1,
            )
    assert await tokens(gateway) == {("chat", "2", ""): total}


async def test_tokens_of_counters_and_log_are_those_of_the_server(lab: Lab, stub: Stub) -> None:
    gateway = await lab.start(endpoint("chat", stub.upstream()), endpoint("b", stub.upstream()))
    bodies = [
        {"model": ("chat", "b")[number % 2], "messages": "x" * number, "stream": number % 3 == 0,
         "stub": {"tokens": number % 17}}
        for number in range(300)
    ]  # fmt: skip
    async with client(gateway) as http:
        gate = asyncio.Semaphore(16)

        async def ask(body: dict[str, Any]) -> int:
            async with gate:
                return (await http.post(CHAT, json=body)).status_code

        assert set(await asyncio.gather(*map(ask, bodies))) == {200}
    counted = await tokens(gateway)
    await asyncio.sleep(1.5)  # lines of the log are written within a second
    lines = (gateway.settings.run_dir / "access.log").read_text().splitlines()
    logged = [json.loads(line)["usage"] for line in lines]

    usages = [usage_of(body) for body in bodies]
    for number, name in enumerate(("chat", "b")):
        of_endpoint = usages[number::2]
        assert counted[name, "2", ""].output == sum(u["completion_tokens"] for u in of_endpoint)
        assert counted[name, "2", ""].input == sum(u["prompt_tokens"] for u in of_endpoint)
        assert counted[name, "2", ""].unknown == 0
    for field, name in (("input", "prompt_tokens"), ("output", "completion_tokens")):
        assert sum(int(usage[field]) for usage in logged) == sum(u[name] for u in usages)


async def test_the_time_limit_bounds_the_wait_for_tokens_and_not_the_stream(
    lab: Lab, stub: Stub
) -> None:
    gateway = await lab.start(endpoint("chat", stub.upstream(), timeout_s=0.5))

    async def ask(**told: Any) -> tuple[int, list[str]]:
        body = {"model": "chat", "messages": [], "stream": True, "stub": told}
        async with http.stream("POST", CHAT, json=body) as answer:
            received = ""
            with contextlib.suppress(httpx.RemoteProtocolError):
                async for text in answer.aiter_text():
                    received += text
        return answer.status_code, texts(received)

    async with client(gateway) as http:
        status, events = await ask(tokens=20, pause_s=0.1)
        assert (status, events[-1]) == (200, "[DONE]")
        status, events = await ask(stalls_at=3)
        assert (status, len(events)) == (200, 3)
        status, events = await ask(breaks_at=2)
        assert (status, len(events)) == (200, 2)
        late = await http.post(CHAT, json={"model": "chat", "stub": {"hangs": True}})
    assert late.status_code == 504
    assert late.json()["error"] == {
        "message": "endpoint 'chat' did not answer within its `timeout_s`, or the caller's own; "
        "ask for less in one request, or raise `timeout_s` in the spec",
        "type": "server_error",
        "param": None,
        "code": None,
    }
    counted = await tokens(gateway)
    # Of streams that were cut, the tokens that came: two and one, each after the role.
    assert (counted["chat", "2", ""].output, counted["chat", "2", ""].unknown) == (23, 2)


@pytest.mark.parametrize(
    ("deadline", "told", "status"),
    [
        ("0.3", {"hangs": True}, 504),
        ("5", {"tokens": 10, "pause_s": 0.1}, 200),
        ("1e9", {}, 200),
        ("inf", {}, 200),
        ("0.0000001", {"hangs": True}, 504),
        ("0", {}, 400),
        ("-1", {}, 400),
        ("nan", {}, 400),
        ("soon", {}, 400),
        ("", {}, 400),
    ],
)
async def test_a_caller_may_set_a_deadline(
    lab: Lab, stub: Stub, deadline: str, told: dict[str, Any], status: int
) -> None:
    gateway = await lab.start(endpoint("chat", stub.upstream(), timeout_s=30.0))
    body = {"model": "chat", "messages": [], "stream": True, "stub": told}

    async with client(gateway) as http:
        answer = await http.post(CHAT, json=body, headers={"x-headrace-timeout-s": deadline})

    assert answer.status_code == status, answer.text
    if status == 400:
        expected = "header x-headrace-timeout-s must be a positive number"
        assert answer.json()["error"]["message"] == expected
    assert answer.elapsed.total_seconds() < 5


async def test_a_deadline_ends_a_stream_and_no_server_gets_fewer_requests_by_it(
    lab: Lab, stub: Stub
) -> None:
    gateway = await lab.start(endpoint("chat", stub.upstream(), timeout_s=30.0))
    body = {"model": "chat", "messages": [], "stream": True}
    long = {**body, "stub": {"tokens": 100, "pause_s": 0.1}}
    started = time.monotonic()

    async with client(gateway) as http:
        with pytest.raises(httpx.RemoteProtocolError):
            await http.post(CHAT, json=long, headers={"x-headrace-timeout-s": "0.5"})
        assert 0.4 < time.monotonic() - started < 5
        hanging = {**body, "stub": {"hangs": True}}
        late = [
            http.post(CHAT, json=hanging, headers={"x-headrace-timeout-s": "0.2"})
            for _ in range(40)
        ]
        assert {answer.status_code for answer in await asyncio.gather(*late)} == {504}
    failures = "ejections_detected_consecutive_local_origin_failure"
    found = (await gateway.admin.get(f"/stats?filter=chat.*{failures}")).split()
    assert found[1::2] == ["0"], found


async def test_callers_beyond_their_tokens_are_refused_and_told_when_to_come_back(
    lab: Lab, stub: Stub
) -> None:
    limits = EndpointLimitsSpec(per_caller=LimitSpec(tokens_per_minute=600.0))
    chat = endpoint("chat", stub.upstream(), limits=limits)
    async with service(lab.directory, GatewayPolicy(), chat):
        gateway = EnvoyGateway(lab.settings(limits_address=f"unix:{lab.directory}/limits.sock"))
        lab.gateways.append(gateway)
        await gateway.start(build_snapshot(gateway.settings, [chat]))

        async with client(gateway) as http:
            for stream in (False, True):
                body = {"model": "chat", "messages": "", "stub": {"tokens": 60}, "stream": stream}
                first = await http.post(CHAT, json=body)
                assert first.status_code == 200
                assert first.headers["x-ratelimit-limit-tokens"] == "100"
                await asyncio.sleep(0.1)  # the end of a request is reported after its answer
            refused = await http.post(CHAT, json={"model": "chat", "messages": ""})

    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (429, "rate_limit_exceeded")
    assert error["type"] == "rate_limit_error"
    assert "tokens_per_minute (burst 100)" in error["message"]
    assert refused.headers["x-ratelimit-remaining-tokens"] == "0"
    wait_s = int(refused.headers["retry-after"])
    assert refused.headers["x-ratelimit-reset-tokens"] == f"{wait_s}s"
    assert 3 <= wait_s <= 9  # 20 are owed, at 10 a second, and about 25 of a mean request


async def test_a_token_of_a_limit_costs_the_weight_of_its_kind(lab: Lab, stub: Stub) -> None:
    weights = TokenWeightsSpec(input=2.0, cached=0.5, output=3.0, reasoning=0.0)
    limits = EndpointLimitsSpec(total=LimitSpec(tokens_per_day=1000, token_weights=weights))
    chat = endpoint("chat", stub.upstream(), limits=limits)
    messages = [{"role": "user", "content": "x" * 400}]
    used = usage_of({"messages": messages, "stub": {"tokens": 60}})
    cached = used["prompt_tokens_details"]["cached_tokens"]
    cost = 2.0 * (used["prompt_tokens"] - cached) + 0.5 * cached + 3.0 * 40
    async with service(lab.directory, GatewayPolicy(), chat):
        gateway = EnvoyGateway(lab.settings(limits_address=f"unix:{lab.directory}/limits.sock"))
        lab.gateways.append(gateway)
        await gateway.start(build_snapshot(gateway.settings, [chat]))
        left = []
        async with client(gateway) as http:
            for stream in (False, True, False):
                body = {"model": "chat", "messages": messages, "stub": {"tokens": 60}}
                answer = await http.post(CHAT, json={**body, "stream": stream})
                assert answer.status_code == 200
                left.append(int(answer.headers["x-ratelimit-remaining-tokens"]))
                await asyncio.sleep(0.2)  # the end of a request is reported after its answer

    assert left == [1000, 1000 - int(cost), 1000 - int(2 * cost)]


async def test_latency_of_a_stream_is_the_time_to_its_first_token(lab: Lab, stub: Stub) -> None:
    chat = endpoint("chat", stub.upstream())
    gateway = await lab.start(chat, endpoint("split", stub.upstream(), split_id="r1"))
    async with client(gateway) as http:
        for model in ("chat", "split"):
            for stream in (True, False):
                told = {"pause_s": 0.2 if stream else 0.0, "tokens": 2}
                body = {"model": model, "stream": stream, "stub": told}
                assert (await http.post(CHAT, json=body)).status_code == 200
    of_split = (await gateway.arm_statistics(["split"])).arms
    of_all = (await gateway.endpoint_statistics(["chat", "split"])).arms

    times = (await gateway.token_statistics()).times
    for arm in (of_all["chat", "2"], of_all["split", "2"], of_split["split", "2"]):
        assert arm.requests == 2
        quick, slow = sorted(lower_s for lower_s, _ in arm.latency)
        assert quick < 0.19 <= slow
    for name, below_s in (("first_token_us", 2.0), ("per_token_us", 3.0)):
        (bucket,) = times[name]["chat", "2"]
        assert 0.19 <= bucket[0] < below_s


async def test_tokens_of_a_split_are_counted_by_arm(lab: Lab, stub: Stub) -> None:
    arms = [
        RevisionTarget(version=version, replicas=(), weight=50, upstream=stub.upstream())
        for version in ("1", "2")
    ]
    split = EndpointRoute(name="split", arms=tuple(arms), timeout_s=10.0, split_id="r1")
    gateway = await lab.start(split)
    async with client(gateway) as http:
        for tokens_ in (5, 240):
            for stream in (True, False):
                told = {"pause_s": 0.001, "tokens": tokens_}
                body = {"model": "split", "stream": stream, "stub": told}
                assert (await http.post(CHAT, json=body)).status_code == 200
        cut = {"model": "split", "stream": True, "stub": {"tokens": 50, "breaks_at": 9}}
        with contextlib.suppress(httpx.RemoteProtocolError):
            await http.post(CHAT, json=cut)
    counted = (await gateway.arm_statistics(["split"])).arms.values()

    both = ArmStatistics()
    for arm in counted:
        both = both.plus(arm)
    assert both.requests == 5
    assert both.output_tokens == {(5.0, 0.1): 2, (240.0, 10.0): 2}
    assert sum(both.per_token.values()) == 2
    assert all(0.0005 < lower_s < 0.1 for lower_s, _ in both.per_token)


async def test_a_caller_who_leaves_ends_the_generation(lab: Lab, stub: Stub) -> None:
    async with started(lab, endpoint("chat", stub.upstream())) as http:
        told = {"tokens": 1000, "pause_s": 0.05}
        body = {"model": "chat", "messages": [], "stream": True, "stub": told}
        async with http.stream("POST", CHAT, json=body) as answer:
            async for _ in answer.aiter_text():
                break
        for _ in range(200):
            if stub.seen()[-1]["left"]:
                break
            await asyncio.sleep(0.05)
    assert stub.seen()[-1]["left"]
    assert stub.seen()[-1]["sent"] < 100
