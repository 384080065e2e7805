"""What a hostile caller tries at the edge."""

import asyncio
import os
import stat

import grpc
import pytest
from tritonclient.grpc import service_pb2

from headrace.gateway import GATEWAY_USER, EnvoyGateway, GatewayUnavailableError
from tests.e2e.gateway.lab import Lab, client, endpoint, grpc_target

pytestmark = [pytest.mark.e2e, pytest.mark.anyio, pytest.mark.slow]


async def _raw(gateway: EnvoyGateway, head: str) -> bytes:
    """Send bytes that no client library would."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.settings.http_port)
    writer.write(f"{head}\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return answer


async def test_a_path_that_climbs_is_judged_as_what_it_means(lab: Lab) -> None:
    """Else a rule for /v2/health would let requests to models pass."""
    gateway = await lab.start(endpoint("m", lab.replica("1")))

    for path in ("/v2/health/../models/m", "/v2/health/%2e%2e/models/m", "/v2//models/m"):
        answer = await _raw(gateway, f"GET {path} HTTP/1.1")
        assert b'"path": "/v2/models/m"' in answer


async def test_an_escaped_slash_and_a_path_above_the_root_are_refused_in_json(lab: Lab) -> None:
    gateway = await lab.start(endpoint("m", lab.replica("1")))

    for path in ("/v2/health/%2F..%2Fmodels/m", "/v2%2fmodels", "/v2/models%5cm"):
        answer = await _raw(gateway, f"GET {path} HTTP/1.1")
        assert answer.startswith(b"HTTP/1.1 400"), path
        assert b'{"error":"Bad Request: ' in answer
    above = await _raw(gateway, "GET /v2/../../../etc/passwd HTTP/1.1")
    assert above.startswith((b"HTTP/1.1 404", b"HTTP/1.1 400"))
    assert b'{"error":' in above


async def test_headers_that_only_the_gateway_sets_are_removed(lab: Lab) -> None:
    gateway = await lab.start(endpoint("m", lab.replica("1")))
    sent = {
        "x-model": "other",
        "x-model-version": "9",
        "x-headrace-secret": "1",
        "x-headrace-timeout": "1",
        "x-headrace-timeout-s": "2.5",
        "x-envoy-retry-on": "5xx",
        "x-request-id": "mine",
    }

    async with client(gateway) as http:
        answer = await http.get("/v2/models/m", headers=sent)

    arrived = answer.json()["headers"]
    assert not {"x-model", "x-model-version", "x-envoy-retry-on"} & set(arrived)
    assert arrived["x-headrace-timeout-s"] == "2.5"
    assert arrived["x-request-id"] == answer.headers["x-request-id"] == "mine"


async def test_a_spoofed_model_header_does_not_move_a_grpc_call(lab: Lab) -> None:
    one, two = lab.replica("1"), lab.replica("2")
    gateway = await lab.start(endpoint("mine", one), endpoint("other", two))

    async with grpc.aio.insecure_channel(grpc_target(gateway)) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        message = service_pb2.ModelInferRequest(model_name="mine").SerializeToString()
        answer = await call(message, metadata=[("x-model", "other")])

    assert service_pb2.ModelInferResponse.FromString(answer).model_version == "1"


async def test_a_name_that_is_none_becomes_no_header(lab: Lab) -> None:
    """Copied into a header, a line break in a name would start a request of its own."""
    gateway = await lab.start(endpoint("m", lab.replica("1")))

    async with grpc.aio.insecure_channel(grpc_target(gateway)) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for model, version in (
            ("m\r\nx-injected: 1", ""),
            ("m\r\n\r\nGET /v2/models/m HTTP/1.1\r\n\r\n", ""),
            ("m\0", ""),
            ("m", "1\r\nx-injected: 1"),
            ("m" * 100_000, ""),
            ("ü", ""),
            ("%00%0d%0a", ""),
        ):
            request = service_pb2.ModelInferRequest(model_name=model, model_version=version)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(request.SerializeToString())
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND, (model[:50], version)


async def test_a_header_with_an_underscore_reaches_a_replica_under_its_own_name(lab: Lab) -> None:
    """HTTP/2 streams with such a header were reset, so gRPC callers never learned why."""
    replica = lab.replica("1")
    gateway = await lab.start(endpoint("m", replica))
    request = service_pb2.ModelInferRequest(model_name="m").SerializeToString()

    async with client(gateway) as http:
        answer = await http.get("/v2/models/m", headers={"x_headrace_caller": "root"})
    async with grpc.aio.insecure_channel(grpc_target(gateway)) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        assert await call(request, metadata=(("user_id", "ann"),))

    by_http, by_grpc = (seen["headers"] for seen in replica.seen())
    assert answer.status_code == 200
    assert by_http["x_headrace_caller"] == "root"
    assert "x-headrace-caller" not in by_http
    assert by_grpc["user_id"] == "ann"


async def test_a_grpc_message_that_is_no_protobuf_is_left_to_a_replica_and_crashes_nothing(
    lab: Lab,
) -> None:
    gateway = await lab.start(endpoint("m", lab.replica("1")))

    async with grpc.aio.insecure_channel(grpc_target(gateway)) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for message in (b"", b"\xff" * 50, b"\x0a\xff\xff\xff\xff\x7f"):
            try:
                await call(message)  # a real replica refuses it: tests/e2e/system/test_error_map.py
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.INVALID_ARGUMENT  # noqa: PT017  # or Envoy does
            assert gateway.is_running(), message


async def test_the_admin_socket_is_private_and_does_not_end_envoy(lab: Lab) -> None:
    gateway = await lab.start()

    with pytest.raises(GatewayUnavailableError, match="403"):
        await gateway.admin.post("/quitquitquit")
    with pytest.raises(GatewayUnavailableError, match="403"):
        await gateway.admin.get("/config_dump")

    mode = gateway.settings.admin_socket.stat().st_mode
    assert stat.S_IMODE(mode) == 0o600


async def test_files_of_the_run_directory_are_private(lab: Lab) -> None:
    gateway = await lab.start()
    run_dir = gateway.settings.run_dir

    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in run_dir.iterdir()}

    # Root's lets the group of its Envoy in, which nobody else is in.
    is_root, status = os.geteuid() == 0, run_dir.stat()
    assert stat.S_IMODE(status.st_mode) == (0o2750 if is_root else 0o700)
    assert not is_root or status.st_gid == GATEWAY_USER
    for name in ("lds.json", "rds.json", "cds.json", "bootstrap.json", "envoy.log"):
        readable = is_root and name.endswith("ds.json")
        assert modes[name] == (0o640 if readable else 0o600), name
