import json
from collections.abc import Callable
from random import Random

import numpy as np
import pytest
from numpy.typing import ArrayLike

from headrace.client.conversation import Conversation
from headrace.client.http_transport import HttpMessage, HttpReply
from headrace.client.http_wire import HttpWire
from headrace.client.retry import RetryPolicy
from headrace.client.session import Session
from headrace.core import (
    DeadlineExceededError,
    InferResponse,
    InvalidArgumentError,
    ModelNotFoundError,
    OverloadedError,
    PermissionDeniedError,
    RequestedOutput,
    UnavailableError,
)
from tests.unit.client.fakes import Answer, FakeServer, TurnedClock

METADATA = {
    "name": "m",
    "versions": ["1"],
    "platform": "onnxruntime_onnx",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1]}],
}
ROW = np.zeros((1, 2), np.float32)


def reply(document: object, status: int = 200, **headers: str) -> HttpReply:
    return HttpReply(status=status, headers=headers, body=json.dumps(document).encode())


def answer(message: HttpMessage) -> Answer:
    match message.path.rsplit("/", 1)[-1]:
        case "config":
            return reply({"max_batch_size": 8})
        case "infer":
            data = {"name": "y", "datatype": "FP32", "shape": [1], "data": [0.5]}
            return reply({"model_name": "m", "model_version": "1", "outputs": [data]})
        case "ready" | "live":
            return reply({})
        case "v2":
            return reply({"name": "headrace", "version": "1", "extensions": ["statistics"]})
        case "stats":
            return reply({"model_stats": []})
        case _:
            return reply(METADATA)


def make(
    handler: Callable[[HttpMessage], Answer] = answer,
    *,
    takes_s: float = 0.0,
    timeout_s: float | None = 60.0,
    policy: RetryPolicy | None = None,
) -> tuple[Session, FakeServer]:
    server = FakeServer(handler, TurnedClock(), takes_s)
    session = Session(
        HttpWire(),
        policy=policy or RetryPolicy(),
        timeout_s=timeout_s,
        clock=server.clock,
        random=Random(7),  # noqa: S311  # repeatable pauses
    )
    return session, server


def infer(session: Session, x: ArrayLike = ROW, **given: object) -> Conversation[InferResponse]:
    values = {
        "outputs": None,
        "version": "",
        "timeout_s": None,
        "priority": 0,
        "id": "",
        "parameters": None,
    }
    return session.infer("m", {"x": x}, **(values | given))  # type: ignore[arg-type]  # mixed types


def test_an_array_costs_one_request() -> None:
    session, server = make()

    response = server.drive(infer(session))

    assert response.outputs["y"].tolist() == [0.5]
    assert [message.path for message in server.messages] == ["/v2/models/m/infer"]


def test_a_list_asks_for_the_datatype_once() -> None:
    session, server = make()

    for _ in range(2):
        server.drive(infer(session, [[1, 2]]))

    assert [message.path for message in server.messages] == [
        "/v2/models/m",
        "/v2/models/m/config",
        "/v2/models/m/infer",
        "/v2/models/m/infer",
    ]


def test_a_known_signature_refuses_wrong_inputs_before_they_are_sent() -> None:
    session, server = make()
    server.drive(session.signature("m", ""))

    with pytest.raises(InvalidArgumentError, match="unexpected shape for input 'x'"):
        server.drive(infer(session, np.zeros((1, 3), np.float32)))

    assert not any(message.path.endswith("infer") for message in server.messages)


def test_a_model_that_changed_is_asked_again_before_it_refuses() -> None:
    session, server = make()
    server.drive(session.signature("m", ""))
    wider = {"name": "x", "datatype": "FP32", "shape": [-1, 3]}
    server.handler = lambda message: (
        reply(METADATA | {"inputs": [wider]}) if message.path == "/v2/models/m" else answer(message)
    )

    response = server.drive(infer(session, np.zeros((1, 3), np.float32)))

    assert response.model_name == "m"


@pytest.mark.parametrize("status", [404, 501])
def test_a_server_without_configurations_still_has_signatures(status: int) -> None:
    session, server = make(
        lambda message: (
            reply({"error": "no"}, status) if message.path.endswith("config") else answer(message)
        )
    )

    signature = server.drive(session.signature("m", ""))

    assert signature.batched
    assert signature.inputs[0].shape == (-1, 2)


def test_the_message_carries_everything_the_caller_asked_for() -> None:
    session, server = make()

    server.drive(
        infer(
            session,
            version="3",
            outputs=["y", RequestedOutput(name="z", classification=2, binary_data=False)],
            priority=1,
            id="abc",
            parameters={"temperature": 0.5},
        )
    )

    message = server.messages[0]
    head = json.loads(message.content[: int(message.headers["inference-header-content-length"])])
    assert message.path == "/v2/models/m/versions/3/infer"
    assert head == {
        "id": "abc",
        "inputs": [
            {
                "name": "x",
                "shape": [1, 2],
                "datatype": "FP32",
                "parameters": {"binary_data_size": 8},
            }
        ],
        "outputs": [
            {"name": "y"},
            {"name": "z", "parameters": {"classification": 2, "binary_data": False}},
        ],
        "parameters": {"binary_data_output": True, "priority": 1, "temperature": 0.5},
    }
    assert message.content.endswith(b"\0" * 8)


def test_overload_is_retried_after_the_time_the_server_asks_for() -> None:
    answers = [reply({"error": "full"}, 429, **{"retry-after": "2"}), None]
    session, server = make(lambda message: answers.pop(0) or answer(message))

    server.drive(infer(session))

    assert len(server.pauses) == 1
    assert 2.0 <= server.pauses[0] < 2.1


def test_each_try_is_given_what_is_left_of_the_timeout() -> None:
    refused = UnavailableError("starting", retry_after_s=1.0)
    answers: list[Answer | None] = [refused, None]
    session, server = make(lambda message: answers.pop(0) or answer(message), takes_s=1.0)

    server.drive(infer(session, timeout_s=5.0))

    first, second = server.timeouts
    assert first == 5.0
    assert second == pytest.approx(5.0 - 1.0 - server.pauses[0])


def test_a_lasting_outage_ends_with_the_servers_error() -> None:
    session, server = make(lambda _: UnavailableError("down", retry_after_s=None))

    with pytest.raises(UnavailableError, match="down"):
        server.drive(infer(session))

    assert len(server.messages) == 4


def test_no_try_is_made_after_the_deadline() -> None:
    session, server = make(takes_s=10.0)

    with pytest.raises(DeadlineExceededError):
        server.drive(infer(session, [[1, 2]], timeout_s=5.0))

    assert len(server.messages) == 1


def test_the_budget_ends_retries_for_all_calls_together() -> None:
    policy = RetryPolicy(budget_ratio=0.0, budget_reserve=2)
    session, server = make(lambda _: OverloadedError("full", retry_after_s=0.0), policy=policy)

    for _ in range(10):
        with pytest.raises(OverloadedError):
            server.drive(infer(session))

    assert len(server.messages) == 12


def test_readiness_is_asked_once_and_an_outage_is_a_no() -> None:
    session, server = make(lambda _: UnavailableError("down", retry_after_s=None))

    assert server.drive(session.ready("m", "")) is False
    assert server.drive(session.live()) is False
    assert len(server.messages) == 2


@pytest.mark.parametrize(("status", "is_ready"), [(200, True), (400, False), (404, False)])
def test_readiness_is_the_status(status: int, is_ready: object) -> None:
    session, server = make(lambda _: reply({}, status))

    assert server.drive(session.ready("m", "2")) is is_ready
    assert server.drive(session.ready("", "")) is is_ready


def test_a_refused_readiness_question_is_an_error() -> None:
    session, server = make(lambda _: reply({"error": "who are you"}, 403))

    with pytest.raises(PermissionDeniedError, match="who are you"):
        server.drive(session.ready("", ""))


def test_an_unknown_model_has_its_own_error() -> None:
    text = "Request for unknown model: 'm' is not found"
    session, server = make(lambda _: reply({"error": text}, 404))

    with pytest.raises(ModelNotFoundError) as caught:
        server.drive(infer(session))

    assert caught.value.name == "m"


def test_every_question_has_its_route() -> None:
    session, server = make()

    assert server.drive(session.metadata("m", "2")).inputs[0].name == "x"
    assert server.drive(session.config("m", "")) == {"max_batch_size": 8}
    assert server.drive(session.statistics("m", "")) == {"model_stats": []}
    assert server.drive(session.statistics("", "")) == {"model_stats": []}
    assert server.drive(session.server_metadata()).extensions == ("statistics",)
    assert [message.path for message in server.messages] == [
        "/v2/models/m/versions/2",
        "/v2/models/m/config",
        "/v2/models/m/stats",
        "/v2/models/stats",
        "/v2",
    ]


@pytest.mark.parametrize(("model", "version"), [("../x", ""), ("", ""), ("m", "latest")])
def test_names_that_cannot_be_are_refused_before_sending(model: str, version: str) -> None:
    session, server = make()

    with pytest.raises(InvalidArgumentError, match="is not allowed"):
        server.drive(session.metadata(model, version))

    assert not server.messages


@pytest.mark.parametrize("timeout_s", [0, -1, float("inf"), float("nan")])
def test_a_timeout_has_to_be_positive(timeout_s: float) -> None:
    session, server = make()

    with pytest.raises(InvalidArgumentError, match="timeout_s"):
        server.drive(infer(session, timeout_s=timeout_s))
    with pytest.raises(InvalidArgumentError, match="timeout_s"):
        make(timeout_s=timeout_s)


def test_no_timeout_waits_for_ever() -> None:
    session, server = make(timeout_s=None)

    server.drive(infer(session))

    assert server.timeouts == [None]
