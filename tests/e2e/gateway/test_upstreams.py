"""Endpoints whose versions are servers that someone else runs."""

import asyncio
import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tritonclient.grpc.aio import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from headrace.core.spec.rollout import StickySpec
from headrace.core.spec.upstream import UpstreamProtocol, UpstreamSpec
from headrace.gateway import (
    EndpointRoute,
    EnvoyGateway,
    MirrorTarget,
    RevisionTarget,
    build_snapshot,
)
from headrace.gateway.publisher import StatKind
from headrace.gateway.resources import address_of
from headrace.gateway.snapshot import CLUSTERS, ResourceGroup
from tests.e2e.gateway.lab import UP_WITHIN_S, Lab, client, grpc_target
from tests.e2e.gateway.recorder import recorder
from tests.ports import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.anyio, pytest.mark.slow]
MODEL = "their/model"


@dataclass(frozen=True)
class Foreign:
    """A running server of somebody else."""

    port: int
    dialect: str
    process: subprocess.Popen[bytes]

    def settings(self, **changes: Any) -> UpstreamSpec:
        values: dict[str, Any] = {
            "url": f"http://127.0.0.1:{self.port}",
            "protocol": UpstreamProtocol(self.dialect),
            "model": MODEL,
            "health_interval_s": 0.1,
            **changes,
        }
        return UpstreamSpec(**values)

    def ask(self, path: str) -> Any:
        return httpx.get(f"http://127.0.0.1:{self.port}{path}").json()


Start = Callable[..., Foreign]


@pytest.fixture
def foreign() -> Iterator[Start]:
    with contextlib.ExitStack() as stack:

        def start(name: str, dialect: str, *tls: Path) -> Foreign:
            port = free_port()
            script = Path(__file__).with_name("foreign.py")
            arguments = [str(script), str(port), name, dialect, *map(str, tls)]
            process = subprocess.Popen([sys.executable, *arguments])
            stack.callback(process.wait)
            stack.callback(process.kill)
            until = time.monotonic() + UP_WITHIN_S
            while time.monotonic() < until and process.poll() is None:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    return Foreign(port, dialect, process)
                time.sleep(0.02)
            raise AssertionError("the foreign server does not come up")

        yield start


def _route(*arms: RevisionTarget, **changes: Any) -> EndpointRoute:
    return EndpointRoute(name="m", arms=arms, timeout_s=10.0, **changes)


def _arm(version: str, weight: int, upstream: UpstreamSpec) -> RevisionTarget:
    return RevisionTarget(version=version, replicas=(), weight=weight, upstream=upstream)


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    for _ in range(500):
        if await condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it does not come true")


async def _answers(http: httpx.AsyncClient, path: str) -> httpx.Response:
    """The first answer that is none of the gateway's own: a new server is checked first."""
    answer = await http.get(path)
    for _ in range(200):
        if answer.status_code != 503:
            break
        await asyncio.sleep(0.02)
        answer = await http.get(path)
    return answer


@pytest.mark.parametrize(
    ("dialect", "paths"),
    [
        (
            "v2",
            {
                "/v2/models/m/infer?a=%20b": "/v2/models/their/model/infer",
                "/v2/models/m": "/v2/models/their/model",
                "/v2/models/m/versions/2/infer": "/v2/models/their/model/infer",
                "/endpoints/m/v2/models/m/infer": "/v2/models/their/model/infer",
            },
        ),
        (
            "v1",
            {
                "/v1/models/m:predict": "/v1/models/their/model:predict",
                "/v1/models/m/metadata": "/v1/models/their/model/metadata",
            },
        ),
        ("torchserve", {"/endpoints/m/predictions/mnist": "/predictions/mnist"}),
        ("openai", {"/endpoints/m/v1/chat/completions": "/v1/chat/completions"}),
    ],
    ids=["v2", "v1", "torchserve", "openai"],
)
async def test_a_server_is_asked_in_its_own_words(
    lab: Lab, foreign: Start, dialect: str, paths: dict[str, str]
) -> None:
    server = foreign("them", dialect)
    gateway = await lab.start(_route(_arm("2", 100, server.settings()), split_id="r1"))

    async with client(gateway) as http:
        for asked, received in paths.items():
            told = (await _answers(http, asked)).json()
            assert (told["server"], told["path"]) == ("them", received)
            assert told["headers"]["host"] == f"127.0.0.1:{server.port}"
            assert told["query"] == ("a=%20b" if "?" in asked else "")
            assert ("x-headrace-split" in told["headers"]) == ("versions" not in asked)


async def test_a_path_in_the_address_comes_first(lab: Lab, foreign: Start) -> None:
    server = foreign("them", "http")
    settings = server.settings(url=f"http://localhost:{server.port}/base/")
    gateway = await lab.start(_route(_arm("1", 100, settings)))

    async with client(gateway) as http:
        answer = await _answers(http, "/endpoints/m/a/b")
        assert (await http.get("/endpoints/m/../../seen")).status_code == 404

    assert answer.json()["path"] == "/base/a/b"
    assert answer.json()["headers"]["host"] == f"localhost:{server.port}"


async def test_a_request_that_is_tried_again_is_renamed_once(lab: Lab, foreign: Start) -> None:
    server = foreign("them", "http")
    nobody = free_port()
    both = [f"127.0.0.1:{port}" for port in (nobody, server.port)]
    settings = server.settings(url=f"http://127.0.0.1:{nobody}/base")
    gateway = await lab.start()
    snapshot = build_snapshot(gateway.settings, [_route(_arm("1", 100, settings))])
    (part,) = snapshot.parts
    (cluster,) = part.clusters.resources
    # As a name that stands for two servers, of which one is down.
    two = [{"endpoint": {"address": address_of(address)}} for address in both]
    load: Any = {"cluster_name": "m~1", "endpoints": [{"lb_endpoints": two}]}
    clusters = ResourceGroup([{**cluster, "load_assignment": load}], CLUSTERS.type_name)
    await gateway.publish(replace(snapshot, parts=[replace(part, clusters=clusters)]))

    async with client(gateway) as http:
        answers = [await http.post("/endpoints/m/a/b", content=b"x") for _ in range(20)]

    assert {answer.json()["path"] for answer in answers} == {"/base/a/b"}
    stats = await gateway.admin.stats(r"cluster\.m~1\.upstream_rq_retry", StatKind.COUNTER)
    assert sum(int(count) for count in stats.values()) > 0


@pytest.mark.parametrize(
    ("dialect", "asked"),
    [
        ("v1", "/v2/models/m/infer"),
        ("v1", "/v2/models/m/versions/1/infer"),
        ("v2", "/v1/models/m:predict"),
        ("openai", "/v2/models/m/infer"),
    ],
)
async def test_what_a_server_does_not_speak_is_refused_in_words(
    lab: Lab, foreign: Start, dialect: str, asked: str
) -> None:
    gateway = await lab.start(_route(_arm("1", 100, foreign("them", dialect).settings())))

    async with client(gateway) as http:
        answer = await http.get(asked)

    assert answer.status_code == 404
    assert "version 1 of endpoint 'm' does not speak" in answer.json()["error"]


@pytest.mark.long
async def test_a_split_of_our_version_and_theirs_is_sticky_counted_and_mirrored(
    lab: Lab, foreign: Start
) -> None:
    ours, theirs, other = lab.replica("ours"), foreign("theirs", "v2"), foreign("other", "v2")
    route = _route(
        _arm("2", 50, theirs.settings()),
        RevisionTarget(version="1", replicas=(ours.address,), weight=50),
        _arm("3", 0, other.settings()),
        sticky=StickySpec(header="x-user"),
        split_id="r1",
        mirror=MirrorTarget(key="3", percent=100),
    )
    gateway = await lab.start(route)

    async def arm(http: httpx.AsyncClient, user: int) -> str:
        answer = await http.post("/v2/models/m/infer", headers={"x-user": str(user)}, content=b"x")
        told = answer.json()
        assert answer.status_code == 200, told
        return str(told.get("server", told.get("replica")))

    async def is_healthy() -> bool:
        up = [await gateway.upstream_health("m", key) for key in ("2", "3")]
        return up == [(1, 1), (1, 1)]

    async with client(gateway) as http:
        await _until(is_healthy)
        first = [await arm(http, user) for user in range(60)]
        again = [await arm(http, user) for user in range(60)]
    counted = (await gateway.arm_statistics({"m"})).arms

    assert first == again
    assert {"ours", "theirs"} == set(first)
    assert counted["m", "2"].requests == 2 * first.count("theirs")
    assert counted["m", "1"].requests == 2 * first.count("ours")
    copies = other.ask("/seen")
    assert len(copies) == 120
    assert {copy["path"] for copy in copies} == {"/v2/models/their/model/infer"}
    assert {copy["headers"]["x-headrace-shadow"] for copy in copies} == {"1"}


async def test_a_sick_server_gets_no_requests_and_its_arm_fails(lab: Lab, foreign: Start) -> None:
    server = foreign("them", "v2")
    gateway = await lab.start(_route(_arm("1", 100, server.settings())))

    async with client(gateway) as http:
        assert (await _answers(http, "/v2/models/m/infer")).status_code == 200
        server.ask("/sicken")

        async def is_refused() -> bool:
            return (await http.get("/v2/models/m/infer")).status_code == 503

        await _until(is_refused)

    assert await gateway.upstream_health("m", "1") == (0, 1)


async def test_a_server_without_health_checks_is_simply_tried(lab: Lab, foreign: Start) -> None:
    server = foreign("them", "v2")
    server.ask("/sicken")
    settings = server.settings(health_path=None)
    gateway = await lab.start(_route(_arm("1", 100, settings)))

    async with client(gateway) as http:
        assert (await http.get("/v2/models/m/infer")).status_code == 200


async def _infer(gateway: EnvoyGateway, request_id: str = "") -> Any:
    async with InferenceServerClient(grpc_target(gateway)) as triton:
        tensor = InferInput("x", [1], "FP32")
        tensor.set_data_from_numpy(np.zeros(1, np.float32))
        headers = {"x-user": request_id}
        result = await triton.infer("m", [tensor], request_id=request_id, headers=headers)
        return result.get_response()


@pytest.mark.parametrize("path", ["/v2/models/m/infer", "/endpoints/m/v2/models/m/infer"])
async def test_a_header_that_their_server_may_misread_is_refused_by_name(
    lab: Lab, foreign: Start, path: str
) -> None:
    """Also where one of our replicas would answer: which arm takes it is not the caller's."""
    server = foreign("them", "v2")
    arms = (_arm("2", 1, server.settings()), RevisionTarget(version="1", weight=99, replicas=()))
    gateway = await lab.start(_route(*arms))

    async with client(gateway) as http:
        await _answers(http, path)
        before = len(server.ask("/seen"))
        for _ in range(9):
            answer = await http.get(path, headers={"X_Headrace_Caller": "root"})
            assert answer.status_code == 400
            assert answer.json()["error"].startswith("header 'x_headrace_caller' is refused: ")
        unknown = await http.get("/v2/models/m/versions/9", headers={"a_b": "c"})

    assert unknown.json() == {"error": "Request for unknown model: 'm' version 9 is not found"}
    assert len(server.ask("/seen")) == before


async def test_metadata_that_their_grpc_server_may_misread_has_a_status_and_a_reason(
    lab: Lab, foreign: Start
) -> None:
    theirs = foreign("theirs", "grpc")
    settings = theirs.settings(url=f"grpc://127.0.0.1:{theirs.port}", model="")
    gateway = await lab.start(_route(_arm("1", 100, settings)))

    async with InferenceServerClient(grpc_target(gateway)) as triton:
        tensor = InferInput("x", [1], "FP32")
        tensor.set_data_from_numpy(np.zeros(1, np.float32))
        assert await triton.infer("m", [tensor], headers={"a-b": "c"})
        with pytest.raises(InferenceServerException) as caught:
            await triton.infer("m", [tensor], headers={"a_b": "c"})

    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert str(caught.value.message()).startswith("header 'a_b' is refused: ")


async def test_a_compressed_message_does_not_go_to_a_server_of_somebody_else(
    lab: Lab, foreign: Start
) -> None:
    """It may name a second model behind the part that the gateway reads."""
    theirs = foreign("theirs", "grpc")
    settings = theirs.settings(url=f"grpc://127.0.0.1:{theirs.port}", model="")
    gateway = await lab.start(_route(_arm("1", 100, settings)))

    async with InferenceServerClient(grpc_target(gateway)) as triton:
        tensor = InferInput("x", [1000], "FP32")
        tensor.set_data_from_numpy(np.zeros(1000, np.float32))
        assert await triton.infer("m", [tensor])
        with pytest.raises(InferenceServerException) as caught:
            await triton.infer("m", [tensor], compression_algorithm="gzip")

    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
    assert "compressed messages are not supported by endpoints with an upstream" in str(
        caught.value.message()
    )


async def test_a_grpc_server_and_our_replicas_share_one_split(lab: Lab, foreign: Start) -> None:
    ours, theirs = lab.replica("ours"), foreign("theirs", "grpc")
    settings = theirs.settings(url=f"grpc://127.0.0.1:{theirs.port}", model="")
    route = _route(
        _arm("2", 50, settings),
        RevisionTarget(version="1", replicas=(ours.address,), weight=50),
        sticky=StickySpec(header="x-user"),
        split_id="r1",
    )
    gateway = await lab.start(route)

    async def is_healthy() -> bool:
        return await gateway.upstream_health("m", "2") == (1, 1)

    await _until(is_healthy)
    answers = [await _infer(gateway, str(i)) for i in range(20)]
    pinned = replace(route, arms=(replace(route.arms[0], weight=100),))
    await lab.publish(gateway, pinned)
    with pytest.raises(InferenceServerException) as refused:
        await _infer(gateway, "refuse")
    async with client(gateway) as http:
        over_http = await http.get("/v2/models/m/infer")

    by_them = [answer for answer in answers if answer.model_version == "theirs"]
    assert {answer.model_version for answer in answers} == {"ours", "theirs"}
    metadata = json.loads(by_them[0].id)
    assert metadata["x-headrace-split"] == "r1"
    assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert refused.value.message() == "no such input"
    assert "does not speak the Open Inference Protocol over HTTP" in over_http.json()["error"]
    counted = (await gateway.arm_statistics({"m"})).arms
    assert (counted["m", "2"].requests, counted["m", "2"].rejections) == (len(by_them) + 1, 1)


def _make_certificate(directory: Path, host: str) -> None:
    files = ("-keyout", f"{directory}/{host}.key", "-out", f"{directory}/{host}.pem")
    kind = ("-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    names = ("-subj", f"/CN={host}", "-addext", f"subjectAltName=DNS:{host}")
    command = ("openssl", "req", *kind, "-days", "2", *names, *files)
    subprocess.run(command, check=True, capture_output=True)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes certificates with openssl")
async def test_certificates_are_verified_by_authority_and_name(lab: Lab, foreign: Start) -> None:
    for host in ("localhost", "elsewhere.example"):
        _make_certificate(lab.directory, host)
    both = lab.directory / "both.pem"
    texts = [path.read_text() for path in lab.directory.glob("*.pem")]
    both.write_text("".join(texts))
    for host, authorities, is_trusted in (
        ("localhost", "both", True),
        ("elsewhere.example", "both", False),
        ("localhost", "elsewhere.example", False),
    ):
        files = (lab.directory / f"{host}.pem", lab.directory / f"{host}.key")
        server = foreign("them", "v2", *files)
        settings = server.settings(url=f"https://localhost:{server.port}", health_path=None)
        gateway = await lab.start(
            _route(_arm("1", 100, settings)),
            name=f"{host}-{authorities}"[:12],
            ca_file=lab.directory / f"{authorities}.pem",
        )
        async with client(gateway) as http:
            answer = await http.get("/v2/models/m/infer")
        assert (answer.status_code == 200) == is_trusted, (host, authorities, answer.text)


async def test_a_gateway_of_foreign_servers_alone_is_ready(lab: Lab, foreign: Start) -> None:
    gateway = await lab.start(_route(_arm("1", 100, foreign("them", "v2").settings())))

    async with client(gateway) as http:
        assert (await http.get("/v2/health/ready")).status_code == 200


async def test_an_answer_sends_the_gateway_nowhere_else(lab: Lab) -> None:
    async with recorder() as theirs, recorder() as elsewhere:
        url = f"http://127.0.0.1:{elsewhere.port}/v2/models/m"
        named = (
            "location",
            "content-location",
            "refresh",
            "x-accel-redirect",
            "x-envoy-original-path",
        )
        headers = dict.fromkeys(named, url) | {
            "alt-svc": f'h2="127.0.0.1:{elsewhere.port}"; ma=60',
            "x-headrace-not-started": "1",
        }
        lines = [f"{name}: {value}" for name, value in headers.items()]
        settings = UpstreamSpec(url=f"http://127.0.0.1:{theirs.port}", health_path=None)
        gateway = await lab.start(_route(_arm("1", 100, settings)))

        async with client(gateway) as http:
            for status in (201, 300, 301, 302, 303, 307, 308, 401, 503):
                head = [f"HTTP/1.1 {status} X", *lines, "content-length: 2", "", "{}"]
                theirs.answer = "\r\n".join(head).encode()
                for path in ("/v2/models/m/infer", "/endpoints/m/a"):
                    for _ in range(2):
                        answer = await http.post(path, content=b"{}")
                        assert (answer.status_code, answer.headers["location"]) == (status, url)

    assert not elsewhere.heads
    assert {head.split()[1] for head in theirs.heads} == {"/v2/models/m/infer", "/a"}
