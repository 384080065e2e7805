"""A server that describes itself: start page, API documentation, reflection, unknown paths."""

from collections.abc import Iterator
from queue import Queue
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from playwright.sync_api import Browser, ConsoleMessage, Page, expect

from headrace.testing import models
from tests.e2e.console.conftest import browser, chromium
from tests.e2e.replicas import Replica, running
from tests.ports import free_port
from tests.unit.protocol.test_reflection import REQUEST, RESPONSE

__all__ = ["browser", "chromium"]
pytestmark = [pytest.mark.e2e, pytest.mark.slow]
BROWSER = {"accept": "text/html"}


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    """A replica without a gateway."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "m.onnx").write_bytes(models.mlp())
    with running(folder, folder / "m.onnx", grpc_port=free_port()) as replica:
        yield replica


@pytest.fixture(params=["gateway", "replica"])
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "gateway":
        return str(request.getfixturevalue("up").where().http_url)
    return str(request.getfixturevalue("replica").url)


def test_the_start_page_lists_the_endpoints(url: str) -> None:
    document, page = httpx.get(url), httpx.get(url, headers=BROWSER)

    assert document.json()["status"] == "alive"
    assert "m" in document.json()["endpoints"]
    assert page.headers["content-type"].startswith("text/html")
    assert '<a href="/docs#m">m</a>' in page.text
    for link in document.json()["links"].values():
        assert httpx.get(url + link.replace("{name}", "m")).status_code in {200, 405}


def test_each_example_request_of_the_documents_is_answered(url: str) -> None:
    names = httpx.get(f"{url}/v2/models").json()["models"]

    for name in names:
        document = httpx.get(f"{url}/v2/models/{name}/openapi.json").json()
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                body = operation.get("requestBody", {}).get("content", {}).get("application/json")
                example = body and body["example"]
                answer = httpx.request(method, url + path, json=example, timeout=30)
                assert answer.status_code == 200, (method, path, answer.text)


def test_the_document_of_the_server_refers_to_paths_that_exist(url: str) -> None:
    document = httpx.get(f"{url}/openapi.json").json()

    for path, operations in document["paths"].items():
        if "get" in operations:
            answer = httpx.get(url + path.replace("{name}", "m"))
            assert answer.status_code == 200, path


def test_an_unknown_path_names_paths_that_exist(url: str) -> None:
    for path in ("/predict", "/v2/infer", "/m/predict"):
        answer = httpx.post(url + path, json={})
        assert answer.status_code == 404
        assert "POST /v2/models/NAME/infer" in answer.json()["error"]
    assert "/infer" in httpx.get(f"{url}/v2/models/m/nothing").json()["error"]


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    page = browser.new_page()
    page.set_default_timeout(30_000)
    yield page
    page.close()


def problems_of(page: Page) -> list[str]:
    """Return a list that gets the errors of the page, such as refusals by its policy."""
    problems: list[str] = []

    def on_console(message: ConsoleMessage) -> None:
        if message.type == "error":
            problems.append(message.text)

    page.on("console", on_console)
    page.on("pageerror", lambda error: problems.append(str(error)))
    return problems


@pytest.mark.parametrize("path", ["/docs#m", "/v2/models/m/docs"])
def test_the_documentation_sends_the_example_request(page: Page, url: str, path: str) -> None:
    problems = problems_of(page)
    page.goto(url + path)

    infer = page.locator(".opblock-post", has_text="/v2/models/m/infer")
    infer.locator(".opblock-summary").click()
    infer.get_by_role("button", name="Execute").click()

    answer = infer.locator(".live-responses-table")
    expect(answer.locator("tbody .response-col_status").first).to_contain_text("200")
    expect(answer).to_contain_text('"model_name"')
    assert problems == []


def test_the_documentation_lists_the_endpoints(page: Page, url: str) -> None:
    page.goto(f"{url}/docs")

    expect(page.locator("#endpoint option", has_text="all")).to_have_count(1)
    page.select_option("#endpoint", "/openapi.json")
    expect(page.locator(".opblock", has_text="/v2/health/ready")).to_be_visible()


@pytest.fixture(params=["gateway", "replica"])
def target(request: pytest.FixtureRequest) -> str:
    if request.param == "gateway":
        return str(request.getfixturevalue("up").where().grpc_target)
    return f"127.0.0.1:{request.getfixturevalue('replica').settings.grpc_port}"


class ReflectionStream:
    """One stream of a reflection client, which waits for each response."""

    def __init__(self, channel: grpc.Channel, version: str) -> None:
        self._requests: Queue[Any] = Queue()
        call = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=REQUEST.SerializeToString,
            response_deserializer=RESPONSE.FromString,
        )
        self._responses = call(iter(self._requests.get, None), timeout=30)

    def ask(self, **fields: object) -> Any:
        self._requests.put(REQUEST(**fields))
        return next(self._responses)

    def close(self) -> None:
        self._requests.put(None)
        assert list(self._responses) == []


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_a_client_without_proto_files_finds_and_calls_a_service(target: str, version: str) -> None:
    pool = descriptor_pool.DescriptorPool()
    with grpc.insecure_channel(target) as channel:
        stream = ReflectionStream(channel, version)
        services = stream.ask(list_services="*").list_services_response.service
        assert "inference.GRPCInferenceService" in [service.name for service in services]
        found = stream.ask(file_containing_symbol="inference.GRPCInferenceService")
        for file in found.file_descriptor_response.file_descriptor_proto:
            pool.Add(descriptor_pb2.FileDescriptorProto.FromString(file))
        stream.close()

        method = pool.FindServiceByName("inference.GRPCInferenceService").methods_by_name[
            "ModelInfer"
        ]
        request = message_factory.GetMessageClass(method.input_type)(model_name="m")
        tensor = request.inputs.add(name="input", datatype="FP32", shape=[1, 32])
        tensor.contents.fp32_contents.extend(np.ones(32))
        response = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=type(request).SerializeToString,
            response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
        )(request, timeout=30)

    assert response.model_name == "m"
    assert response.raw_output_contents
