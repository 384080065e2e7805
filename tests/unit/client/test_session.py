import json
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import ArrayLike

from headrace.client.conversation import Conversation, RetryPolicy
from headrace.client.http_transport import HttpMessage, HttpReply
from headrace.client.http_wire import HttpWire
from headrace.client.session import ClientSession
from headrace.core import (
    DeadlineExceededError,
    InferResponse,
    InvalidArgumentError,
    ModelNotFoundError,
    OverloadedError,
    PermissionDeniedError,
    RequestedOutput,
    RuntimeFailedError,
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
) -> tuple[ClientSession, FakeServer]:
    server = FakeServer(handler, TurnedClock(), takes_s)
    session = ClientSession(
        HttpWire(),
        policy=policy or RetryPolicy(),
        timeout_s=timeout_s,
        clock=server.clock,
        random=Random(7),  # noqa: S311  # repeatable pauses
    )
    return session, server


def infer(
    session: ClientSession, x: ArrayLike = ROW, **given: object
) -> Conversation[InferResponse]:
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


@dataclass
class Doubler:
    """Doubles the first column of FP32 rows; `limit` rows a request; fails at a row of `bad`."""

    limit: int = 4
    bad: float = -1.0
    sizes: list[int] = field(default_factory=list)
    versions: list[str] = field(default_factory=lambda: ["1"])

    def __call__(self, message: HttpMessage) -> Answer:
        verb = message.path.rsplit("/", 1)[-1]
        if verb == "config":
            return reply({"max_batch_size": self.limit})
        if verb != "infer":
            return reply(METADATA)
        end = int(message.headers["inference-header-content-length"])
        [tensor] = json.loads(message.content[:end])["inputs"]
        rows = tensor["shape"][0]
        if tensor["datatype"] != "FP32":
            return reply({"error": "inference input 'x' data-type is 'FP64'"}, 400)
        if rows > self.limit:
            text = f"inference request batch-size must be <= {self.limit} for 'm', got {rows}"
            return reply({"error": text}, 400)
        self.sizes.append(rows)
        values = np.frombuffer(message.content[end:], np.float32).reshape(rows, 2)[:, 0]
        if self.bad in values:
            return reply({"error": "no such row"}, 400)
        data = {"name": "y", "datatype": "FP32", "shape": [rows], "data": (values * 2).tolist()}
        version = self.versions[len(self.sizes) % len(self.versions)]
        return reply({"model_name": "m", "model_version": version, "outputs": [data]})


def paths(server: FakeServer) -> list[str]:
    return [message.path.rsplit("/", 1)[-1] for message in server.messages]


@given(rows=st.integers(1, 40), limit=st.integers(1, 12), is_known=st.booleans())
def test_rows_over_the_batch_limit_go_in_parts_and_come_back_in_order(
    rows: int,
    limit: int,
    is_known: bool,  # noqa: FBT001  # a parameter
) -> None:
    model = Doubler(limit)
    session, server = make(model)
    if is_known:
        server.drive(session.signature("m", ""))
    x = np.arange(2 * rows, dtype=np.float32).reshape(rows, 2)
    response = server.drive(infer(session, x))

    assert response.outputs["y"].tolist() == (x[:, 0] * 2).tolist()
    assert response.model_version == "1"
    assert model.sizes == [limit] * (rows // limit) + [rows % limit] * (rows % limit > 0)


def test_float64_is_cast_for_a_model_that_takes_less_where_nothing_is_lost() -> None:
    session, server = make(Doubler())
    first = server.drive(infer(session, np.ones((1, 2))))
    again = server.drive(infer(session, np.full((1, 2), 0.5)))

    assert first.outputs["y"].tolist() == [2.0]
    assert again.outputs["y"].tolist() == [1.0]
    assert paths(server) == ["infer", "m", "config", "infer", "infer"]
    with pytest.raises(InvalidArgumentError, match=r"2 of 2 values would change.*astype"):
        server.drive(infer(session, np.full((1, 2), 0.1)))


def test_an_error_of_a_part_names_its_rows() -> None:
    session, server = make(Doubler(bad=12.0))
    x = np.arange(20, dtype=np.float32).reshape(10, 2)

    with pytest.raises(InvalidArgumentError, match=r"^rows 4 to 7 of 10: no such row$"):
        server.drive(infer(session, x))


def test_a_limit_that_was_lowered_is_learned_again() -> None:
    model = Doubler(limit=8)
    session, server = make(model)
    server.drive(session.signature("m", ""))
    model.limit = 3
    response = server.drive(infer(session, np.zeros((8, 2), np.float32)))

    assert len(response.outputs["y"]) == 8
    assert model.sizes == [3, 3, 2]


def test_parts_that_several_versions_answered_name_them_all() -> None:
    session, server = make(Doubler(versions=["2", "1"]))
    response = server.drive(infer(session, np.zeros((12, 2), np.float32)))

    assert response.model_version == "1, 2"


def test_a_model_without_a_batch_gets_all_in_one_request() -> None:
    model = Doubler(limit=0)
    session, server = make(model)
    server.drive(session.signature("m", ""))

    with pytest.raises(InvalidArgumentError, match="must be <= 0"):
        server.drive(infer(session, np.zeros((3, 2), np.float32)))
    assert model.sizes == []


def test_what_the_server_refuses_for_another_reason_is_sent_once() -> None:
    session, server = make(Doubler(bad=0.0))

    with pytest.raises(InvalidArgumentError, match=r"^no such row$"):
        server.drive(infer(session))
    assert paths(server) == ["infer", "m", "config"]


def test_a_refusal_stays_what_it_is_where_the_model_cannot_be_asked_about() -> None:
    def handler(message: HttpMessage) -> Answer:
        is_infer = message.path.endswith("infer")
        return reply({"error": "bad rows"}, 400) if is_infer else reply({"error": "gone"}, 404)

    session, server = make(handler)

    with pytest.raises(InvalidArgumentError, match="bad rows"):
        server.drive(infer(session))


def test_an_answer_that_has_not_a_row_for_each_cannot_be_joined() -> None:
    session, server = make()  # answers one row, whatever is asked
    server.drive(session.signature("m", ""))

    with pytest.raises(RuntimeFailedError, match=r"rows 0 to 7 of 9: output 'y' has shape \[1\]"):
        server.drive(infer(session, np.zeros((9, 2), np.float32)))
