"""Which replica answers, over HTTP/1.1, HTTP/2 and gRPC, and how what none answers is refused."""

import asyncio
import json
import shutil
from collections import Counter
from collections.abc import Awaitable, Callable

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2
from tritonclient.grpc.aio import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from headrace.gateway import EndpointRoute, EnvoyGateway
from headrace.protocol.pages import NOT_FOUND, not_found_text
from tests.e2e.gateway.lab import Lab, client, endpoint, grpc_target, http_url, split

pytestmark = [pytest.mark.e2e, pytest.mark.anyio, pytest.mark.slow]
SERVICE = "/inference.GRPCInferenceService/"
Rpc = Callable[..., Awaitable[bytes]]


async def _infer(triton: InferenceServerClient, model: str, version: str = "") -> str:
    tensor = InferInput("x", [1], "FP32")
    tensor.set_data_from_numpy(np.zeros(1, np.float32))
    result = await triton.infer(model, [tensor], model_version=version)
    return str(result.get_response().model_version)


async def _error(call: Awaitable[object]) -> tuple[str, str]:
    with pytest.raises(InferenceServerException) as caught:
        await call
    return str(caught.value.status()), str(caught.value.message())


async def test_http_requests_reach_the_endpoint_they_name(lab: Lab) -> None:
    one, two = lab.replica("1"), lab.replica("2")
    gateway = await lab.start(endpoint("m1", one), endpoint("m10", two), endpoint("a.b", two))

    async with client(gateway) as http:
        for path, replica in (
            ("/v2/models/m1/infer", "1"),
            ("/v2/models/m1/versions/1/infer", "1"),
            ("/v2/models/m10", "2"),
            ("/v2/models/a.b/ready", "2"),
            ("/v1/models/m1", "1"),
            ("/v1/models/m10:predict", "2"),
        ):
            answer = await http.get(path)
            assert answer.json()["replica"] == replica, path
            assert answer.json()["path"] == path


async def test_what_no_replica_serves_is_refused_in_json(lab: Lab) -> None:
    one = lab.replica("1")
    gateway = await lab.start(endpoint("m1", one), endpoint("a.b", one), endpoint("empty"))

    async with client(gateway) as http:
        for path, status, error in (
            ("/v2/models/x/infer", 404, "Request for unknown model: 'x' is not found"),
            ("/v2/models/aXb", 404, "Request for unknown model: 'aXb' is not found"),
            ("/v2/models/m10", 404, "Request for unknown model: 'm10' is not found"),
            ("/v1/models/x:predict", 404, "Request for unknown model: 'x' is not found"),
            (
                "/v2/models/m1/versions/9",
                404,
                "Request for unknown model: 'm1' version 9 is not found",
            ),
            (
                "/v2/models/empty/infer",
                503,
                "Request for unknown model: 'empty' is not at ready state",
            ),
            ("/nowhere", 404, NOT_FOUND),
            ("/v2/healthx", 404, not_found_text("/v2/healthx")),
        ):
            answer = await http.post(path, json={})
            assert (answer.status_code, answer.json()) == (status, {"error": error}), path
            assert answer.headers["content-type"] == "application/json"
            assert answer.headers["server"] == "headrace"
            assert ("retry-after" in answer.headers) == (status == 503), path


async def test_repository_verbs_are_forbidden_and_say_where_they_work(lab: Lab) -> None:
    gateway = await lab.start()

    async with client(gateway) as http:
        answer = await http.post("/v2/repository/models/m/load", json={})
    async with InferenceServerClient(grpc_target(gateway)) as triton:
        status, message = await _error(triton.load_model("m"))

    assert answer.status_code == 403
    assert "management port" in answer.json()["error"]
    assert status == "StatusCode.PERMISSION_DENIED"
    assert "management port" in message


async def test_requests_about_the_server_need_a_ready_replica_except_liveness(lab: Lab) -> None:
    one = lab.replica("1")
    empty, full = await lab.start(name="empty"), await lab.start(endpoint("m", one), name="full")

    async with client(empty) as http:
        assert (await http.get("/v2/health/live")).status_code == 200
        assert (await http.get("/v2/health/ready")).status_code == 503
        assert (await http.get("/v2/models")).json() == {"models": []}
    async with client(full) as http:
        assert (await http.get("/v2/health/ready")).json()["replica"] == "1"
        assert (await http.get("/v2")).json()["replica"] == "1"
        assert (await http.get("/v2/")).json()["replica"] == "1"
        assert (await http.get("/v1/models")).json() == {"models": ["m"]}
    async with InferenceServerClient(grpc_target(full)) as triton:
        assert await triton.is_server_live()


async def test_liveness_has_the_body_that_each_protocol_names(lab: Lab) -> None:
    gateway = await lab.start(EndpointRoute(name="idle", arms=(), held=True))

    async with client(gateway) as http:
        for path, document in (
            ("/v2/health/live", {"live": True}),
            ("/v2/health/ready", {"ready": True}),
            ("/", {"status": "alive"}),
        ):
            answer, head = await http.get(path), await http.head(path)
            assert answer.status_code == 200
            assert answer.json().items() >= document.items()
            assert answer.headers["content-type"] == "application/json"
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["content-length"] == answer.headers["content-length"]


async def test_what_is_only_read_refuses_every_other_method(lab: Lab) -> None:
    gateway = await lab.start(EndpointRoute(name="idle", arms=(), held=True))
    typed = {"content-type": "application/json"}
    paths = ("/", "/v2/health/live", "/v2/health/ready", "/v2/models", "/v1/models")

    async with client(gateway) as http:
        for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY"):
            for path in paths:
                answer = await http.request(method, path, headers=typed)
                assert answer.status_code == 405, (method, path)
                assert answer.headers["allow"] == "GET, HEAD", (method, path)
                assert answer.json() == {"error": "Method Not Allowed"}


async def test_a_query_without_a_type_is_a_method_that_is_not_allowed(lab: Lab) -> None:
    """Envoy itself refuses these, as no QUERY should be without a type."""
    gateway = await lab.start(endpoint("m", lab.replica("1")))

    async with client(gateway) as http:
        for path, allowed in (
            ("/v2/models/m", "GET, HEAD"),
            ("/v2/models/m/infer", "POST"),
            ("/v2/models/m/infer?x=1", "POST"),
            ("/v1/models/m:predict", "POST"),
        ):
            answer = await http.request("QUERY", path)
            assert (answer.status_code, answer.headers["allow"]) == (405, allowed), path
            assert answer.json() == {"error": "Method Not Allowed"}


async def test_the_model_named_in_a_grpc_message_decides(lab: Lab) -> None:
    one, two = lab.replica("1"), lab.replica("2")
    gateway = await lab.start(endpoint("m1", one), endpoint("a.b", two), endpoint("empty"))

    async with InferenceServerClient(grpc_target(gateway)) as triton:
        assert await _infer(triton, "m1") == "1"
        assert await _infer(triton, "m1", "1") == "1"
        assert await _infer(triton, "a.b") == "2"
        assert (await triton.get_model_metadata("a.b")).versions == ["2"]
        assert await _error(_infer(triton, "x")) == (
            "StatusCode.NOT_FOUND",
            "Request for unknown model: 'x' is not found",
        )
        assert await _error(_infer(triton, "m1", "9")) == (
            "StatusCode.NOT_FOUND",
            "Request for unknown model: 'm1' version 9 is not found",
        )
        assert await _error(_infer(triton, "empty")) == (
            "StatusCode.UNAVAILABLE",
            "Request for unknown model: 'empty' is not at ready state",
        )


async def test_both_ports_answer_http_and_grpc(lab: Lab) -> None:
    gateway = await lab.start(endpoint("m", lab.replica("1")))
    http_port, grpc_port = gateway.settings.http_port, gateway.settings.grpc_port

    async with InferenceServerClient(f"127.0.0.1:{http_port}") as triton:
        assert await _infer(triton, "m") == "1"
    async with client(gateway) as http:
        answer = await http.get(f"http://127.0.0.1:{grpc_port}/v2/models/m")
    assert answer.json()["replica"] == "1"


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl for HTTP/2 without TLS")
async def test_http2_with_prior_knowledge_is_answered(lab: Lab) -> None:
    gateway = await lab.start(endpoint("m", lab.replica("1")))

    url = http_url(gateway, "/v2/models/m/infer")
    process = await asyncio.create_subprocess_exec(
        *("curl", "-s", "--http2-prior-knowledge", "-d", "{}", "-w", "\n%{http_version}", url),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()

    body, version = output.decode().splitlines()
    assert (json.loads(body)["replica"], version) == ("1", "2")


@pytest.mark.long
async def test_weights_decide_how_often_each_revision_answers(lab: Lab) -> None:
    one, two = lab.replica("1"), lab.replica("2")
    gateway = await lab.start(split("m", ("1", 70, one), ("2", 30, two)))

    async with client(gateway) as http:
        answers = [(await http.get("/v2/models/m")).json()["replica"] for _ in range(400)]
        pinned = {(await http.get("/v2/models/m/versions/2")).json()["replica"] for _ in range(9)}

    assert 60 < Counter(answers)["2"] < 180  # six standard deviations
    assert pinned == {"2"}


async def test_statistics_over_all_models_come_from_the_control_plane(lab: Lab) -> None:
    one, control = lab.replica("1"), lab.replica("control")
    gateway = await lab.start(endpoint("m", one), control_address=control.address)

    async with client(gateway) as http:
        everything = (await http.get("/v2/models/stats")).json()["replica"]
        single = (await http.get("/v2/models/m/stats")).json()["replica"]
    async with InferenceServerClient(grpc_target(gateway)) as triton:
        over_grpc = await triton.get_inference_statistics()
        of_one = await triton.get_inference_statistics("m")

    assert (everything, single) == ("control", "1")
    assert over_grpc.model_stats[0].name == "control"
    assert of_one.model_stats[0].name == "1"


async def _status_of(gateway: EnvoyGateway, method: str, message: bytes = b"") -> str:
    """The status and text of a call that fails, by a client that knows no message types."""
    async with grpc.aio.insecure_channel(grpc_target(gateway)) as channel:
        call: Rpc = channel.unary_unary(method)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(message)
    return f"{caught.value.code().name}: {caught.value.details()}"


async def test_rpcs_that_the_gateway_does_not_serve_are_unimplemented(lab: Lab) -> None:
    gateway = await lab.start(endpoint("m", lab.replica("1")))
    named = service_pb2.ModelInferRequest(model_name="m").SerializeToString()

    stream = await _status_of(gateway, f"{SERVICE}ModelStreamInfer", named)
    memory = await _status_of(gateway, f"{SERVICE}SystemSharedMemoryStatus")
    other = await _status_of(gateway, "/other.Service/Call")

    assert stream.startswith("UNIMPLEMENTED: the gateway serves unary calls only")
    assert memory == "UNIMPLEMENTED: SystemSharedMemoryStatus of 1"
    assert other.startswith("UNIMPLEMENTED: there is no such gRPC service")


async def test_a_grpc_call_that_names_no_model_reaches_a_replica_which_says_so(lab: Lab) -> None:
    gateway = await lab.start(endpoint("m", lab.replica("1")))
    request = service_pb2.ModelInferRequest().SerializeToString()

    async with grpc.aio.insecure_channel(grpc_target(gateway)) as channel:
        answer = await channel.unary_unary(f"{SERVICE}ModelInfer")(request)

    assert service_pb2.ModelInferResponse.FromString(answer).model_version == "1"


async def test_grpc_health_is_asked_of_any_replica_or_of_the_endpoint_named(lab: Lab) -> None:
    one, two = lab.replica("1"), lab.replica("2")
    gateway = await lab.start(endpoint("m1", one), endpoint("m2", two))
    check = "/grpc.health.v1.Health/Check"
    request = service_pb2.ModelReadyRequest  # its field 1 is a name, as is the health check's

    async with grpc.aio.insecure_channel(grpc_target(gateway)) as channel:
        call: Rpc = channel.unary_unary(check)
        assert await call(b"")
        assert b"2" in await call(request(name="m2").SerializeToString())
        assert await call(request(name="inference.GRPCInferenceService").SerializeToString())
    unknown = await _status_of(gateway, check, request(name="x").SerializeToString())

    assert unknown.startswith("NOT_FOUND")


async def test_an_endpoint_that_appears_later_is_listed_and_served(lab: Lab) -> None:
    one = lab.replica("1")
    gateway = await lab.start()

    await lab.publish(gateway, endpoint("late", one), EndpointRoute(name="idle", arms=()))

    async with client(gateway) as http:
        assert (await http.get("/v2/models")).json() == {"models": ["idle", "late"]}
        assert (await http.get("/v2/models/late")).json()["replica"] == "1"
