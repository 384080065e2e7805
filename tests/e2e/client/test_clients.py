"""Both clients against real replicas, over every way there is to one."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import numpy as np
import pytest

from headrace.client import NO_RETRIES, AsyncClient, Client, RetryPolicy
from headrace.core import (
    DeadlineExceededError,
    InvalidArgumentError,
    ModelNotFoundError,
    OverloadedError,
    PayloadTooLargeError,
    RequestedOutput,
    UnavailableError,
)
from tests.e2e.replicas import Replica
from tests.ports import free_port

pytestmark = pytest.mark.e2e

ROWS = np.random.default_rng(7).standard_normal((3, 32)).astype(np.float32)
WAYS: dict[str, Callable[[Replica], str]] = {
    "http": lambda replica: replica.url,
    "unix": lambda replica: f"unix:{replica.settings.uds}",
    "grpc": lambda replica: f"grpc://127.0.0.1:{replica.settings.grpc_port}",
}
TCP = ["http", "grpc"]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Callable[[Replica], str]:
    return WAYS[request.param]


@pytest.fixture(params=TCP)
def tcp(request: pytest.FixtureRequest) -> Callable[[Replica], str]:
    return WAYS[request.param]


@pytest.fixture
def client(replica: Replica, way: Callable[[Replica], str]) -> Iterator[Client]:
    with Client(way(replica)) as client:
        yield client


def test_every_way_gives_the_same_answer(client: Client, replica: Replica) -> None:
    with Client(replica.url) as reference:
        expected = reference.infer("m", {"input": ROWS}).outputs["prob"]

    response = client.infer("m", {"input": ROWS}, id="abc", version="1")

    assert response.id == "abc"
    assert response.model_version == "1"
    assert response.outputs["prob"].shape == (3, 2)
    np.testing.assert_allclose(response.outputs["prob"], expected, rtol=1e-4)


def test_the_server_and_its_model_describe_themselves(client: Client) -> None:
    assert client.live()
    assert client.ready()
    assert client.ready("m")
    assert client.ready("m", "1")
    assert not client.ready("m", "2")
    assert not client.ready("nobody")
    assert client.server_metadata().name == "headrace"
    assert "binary_tensor_data" in client.server_metadata().extensions
    assert client.metadata("m").versions == ("1",)
    assert client.signature("m").batched
    assert client.signature("m").inputs[0].shape == (-1, 32)
    assert client.config("m")["max_batch_size"] == 32


def test_statistics_count_in_numbers(client: Client) -> None:
    before = client.statistics("m")["model_stats"][0]["inference_count"]
    client.infer("m", {"input": ROWS})

    after = client.statistics("m")["model_stats"][0]["inference_count"]

    assert after - before == 3
    assert client.statistics()["model_stats"][0]["name"] == "m"


def test_classes_come_as_text(client: Client) -> None:
    wanted = [RequestedOutput(name="prob", classification=1)]

    response = client.infer("m", {"input": ROWS[:1]}, outputs=wanted)

    value, index, label = response.outputs["prob"].reshape(-1)[0].split(b":")
    assert float(value) > 0.5
    assert label == [b"no", b"yes"][int(index)]


def test_strings_go_and_come(words: Replica, tcp: Callable[[Replica], str]) -> None:
    text = [["a"], ["ü"], [""]]
    with Client(tcp(words)) as client:
        response = client.infer("m", {"text": text})

    assert response.outputs["echo"].tolist() == [[b"a"], ["ü".encode()], [b""]]


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ({"input": np.zeros((1, 3), np.float32)}, "unexpected shape for input 'input'"),
        ({"input": np.full((1, 32), "a")}, "data-type is"),
        ({"other": ROWS}, "unexpected inference input 'other'"),
        ({}, "expected 1 inputs but got 0"),
    ],
)
def test_the_server_and_the_client_refuse_wrong_inputs_alike(
    client: Client, inputs: dict[str, Any], text: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=text):
        client.infer("m", inputs)
    client.signature("m")
    with pytest.raises(InvalidArgumentError, match=text):
        client.infer("m", inputs)


def test_an_unknown_model_has_its_own_error(client: Client) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        client.infer("nobody", {"input": ROWS})

    assert caught.value.name == "nobody"


def test_a_body_over_the_limit_is_told_as_that(client: Client) -> None:
    with pytest.raises(PayloadTooLargeError):
        client.infer("m", {"input": np.zeros((1 << 14, 32), np.float32)})


def test_a_client_serves_many_threads(client: Client) -> None:
    expected = client.infer("m", {"input": ROWS}).outputs["prob"]

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: client.infer("m", {"input": ROWS}), range(64)))

    for answer in answers:
        np.testing.assert_allclose(answer.outputs["prob"], expected, rtol=1e-4)


def test_the_timeout_holds_and_is_told_to_the_server(
    slow: Replica, tcp: Callable[[Replica], str]
) -> None:
    with Client(tcp(slow), timeout_s=10) as client:
        name = client.signature("m").inputs[0].name
        began = time.monotonic()

        with pytest.raises(DeadlineExceededError):
            client.infer("m", {name: [[1.0, 2.0]]}, timeout_s=0.05)

    assert time.monotonic() - began < 0.3


def test_overload_is_ridden_out_by_retries(slow: Replica, tcp: Callable[[Replica], str]) -> None:
    patient = RetryPolicy(max_attempts=30, base_delay_s=0.2, max_delay_s=0.5)
    with Client(tcp(slow), retry=patient, timeout_s=20) as client:
        name = client.signature("m").inputs[0].name
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: client.infer("m", {name: [[2.0, 3.0]]}), range(4)))

    assert len(answers) == 4


def test_without_retries_overload_is_the_callers(
    slow: Replica, tcp: Callable[[Replica], str]
) -> None:
    errors: list[Exception] = []
    with Client(tcp(slow), retry=NO_RETRIES, timeout_s=20) as client:
        name = client.signature("m").inputs[0].name

        def call() -> None:
            try:
                client.infer("m", {name: [[2.0, 3.0]]})
            except OverloadedError as error:
                errors.append(error)

        threads = [threading.Thread(target=call) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert errors
    assert all(isinstance(e, OverloadedError) and e.retry_after_s is not None for e in errors)


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_where_nobody_listens_the_error_says_so(scheme: str) -> None:
    quick = RetryPolicy(max_attempts=2, base_delay_s=0.01)
    with Client(f"{scheme}://127.0.0.1:{free_port()}", retry=quick, timeout_s=5) as client:
        assert not client.live()
        assert not client.ready()
        with pytest.raises(UnavailableError, match=r"[Cc]onnect"):
            client.infer("m", {"input": ROWS})


@pytest.mark.anyio
async def test_the_asynchronous_client_does_the_same(
    replica: Replica, way: Callable[[Replica], str]
) -> None:
    async with AsyncClient(way(replica)) as client:
        assert await client.live()
        assert await client.ready("m")
        assert (await client.server_metadata()).name == "headrace"
        assert (await client.metadata("m")).name == "m"
        assert (await client.signature("m")).batched
        assert (await client.config("m"))["max_batch_size"] == 32
        assert (await client.statistics("m"))["model_stats"]
        response = await client.infer("m", {"input": ROWS.tolist()}, outputs=["prob"])

        with pytest.raises(InvalidArgumentError):
            await client.infer("m", {"input": [[1]]})
        with pytest.raises(ModelNotFoundError):
            await client.infer("nobody", {"input": ROWS})

    assert response.outputs["prob"].shape == (3, 2)


@pytest.mark.anyio
async def test_many_tasks_share_a_client(replica: Replica, tcp: Callable[[Replica], str]) -> None:
    shapes = []

    async def ask(client: AsyncClient) -> None:
        shapes.append((await client.infer("m", {"input": ROWS})).outputs["prob"].shape)

    async with AsyncClient(tcp(replica)) as client, anyio.create_task_group() as group:
        for _ in range(64):
            group.start_soon(ask, client)

    assert shapes == [(3, 2)] * 64


@pytest.mark.anyio
async def test_the_asynchronous_timeout_holds(slow: Replica, tcp: Callable[[Replica], str]) -> None:
    async with AsyncClient(tcp(slow)) as client:
        name = (await client.signature("m")).inputs[0].name
        began = time.monotonic()

        with pytest.raises(DeadlineExceededError):
            await client.infer("m", {name: [[1.0, 2.0]]}, timeout_s=0.05)

    assert time.monotonic() - began < 0.3


@pytest.mark.anyio
async def test_an_asynchronous_client_that_was_never_used_closes() -> None:
    for scheme in ("http", "grpc"):
        await AsyncClient(f"{scheme}://127.0.0.1:1").aclose()


@pytest.mark.anyio
async def test_an_asynchronous_client_rides_out_a_missing_server() -> None:
    quick = RetryPolicy(max_attempts=2, base_delay_s=0.01)
    async with AsyncClient(f"http://127.0.0.1:{free_port()}", retry=quick) as client:
        with pytest.raises(UnavailableError, match="cannot connect to http://127"):
            await client.infer("m", {"input": ROWS})
