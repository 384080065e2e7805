"""Which errors of an endpoint are a record's, and which are waited out?"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.client import Client, ConnectionLostError, ProtocolError
from headrace.client.conversation import Attempts, SendMessage
from headrace.client.http_transport import HttpReply
from headrace.core import (
    Array,
    HeadraceError,
    InferResponse,
    InvalidArgumentError,
    ModelNotFoundError,
    ModelSignature,
    OverloadedError,
    PermissionDeniedError,
    RuntimeFailedError,
    UnauthenticatedError,
    UnavailableError,
)
from headrace.core.spec.stream_parts import (
    OpenAIPath,
    StreamFormatSpec,
    StreamOpenAISpec,
    StreamOutputSpec,
)
from headrace.scoring.endpoint import EndpointModel, OpenAIModel, endpoint_scorer
from headrace.streaming.codec import EncodedAnswer
from headrace.streaming.codecs import make_codec
from headrace.streaming.in_flight import is_retryable
from headrace.streaming.scorer import RecordScorer
from headrace.streaming.settings import WorkerSettings
from tests.unit.streaming.parts import MATRIX, records

LONGEST = 8

ROWS = {"x": np.ones((2, 3), np.float32)}


class Server:
    """A client whose server says what a test says."""

    def __init__(self, said: HeadraceError | None = None) -> None:
        self.said = said

    def signature(self, model: str, version: str) -> ModelSignature:
        assert (model, version) == ("m", "2")
        return MATRIX

    def infer(
        self, model: str, inputs: Mapping[str, Array], *, outputs: Sequence[str], version: str
    ) -> InferResponse:
        assert (model, version, outputs) == ("m", "2", ["sum"])
        if self.said is not None:
            raise self.said
        return InferResponse(model_name=model, outputs={"sum": inputs["x"].sum(axis=1)})


def model(said: HeadraceError | None = None) -> EndpointModel:
    client = cast("Client", Server(said))
    return EndpointModel(client, "m", "2")


def test_an_endpoint_answers_as_a_model_does() -> None:
    assert model().signature == MATRIX
    assert model().run(ROWS, ["sum"])["sum"].tolist() == [3.0, 3.0]


@pytest.mark.parametrize(
    "error",
    [
        ConnectionLostError("reset"),
        ModelNotFoundError("m"),
        UnauthenticatedError("who?"),
        PermissionDeniedError("no"),
        UnavailableError("away"),
        OverloadedError("full", retry_after_s=1.0),
    ],
)
def test_what_no_record_is_to_blame_for_is_waited_out(error: HeadraceError) -> None:
    with pytest.raises(HeadraceError, match=str(error)[:4]) as caught:
        model(error).run(ROWS, ["sum"])

    assert is_retryable(caught.value)


@pytest.mark.parametrize("error", [InvalidArgumentError("bad row"), RuntimeFailedError("a bug")])
def test_what_the_model_refuses_is_the_records(error: HeadraceError) -> None:
    with pytest.raises(type(error)) as caught:
        model(error).run(ROWS, ["sum"])

    assert not is_retryable(caught.value)


CHAT = {
    "choices": [{"message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 1},
}


class Gateway:
    """A transport whose gateway answers with these documents, one after the other."""

    def __init__(self, *answers: object, status: int = 200) -> None:
        self.answers = list(answers)
        self.status = status
        self.requests: list[Any] = []

    def send(self, send: SendMessage) -> HttpReply:
        self.requests.append((send.message.path, json.loads(send.message.content)))
        body = json.dumps(self.answers.pop(0)).encode()
        return HttpReply(status=self.status, headers={"retry-after": "3"}, body=body)

    def close(self) -> None:
        self.requests.clear()


def openai_model(gateway: Gateway, *, has_bodies: bool = False, **values: Any) -> OpenAIModel:  # noqa: ANN401  # as the spec
    attempts = Attempts.of_offline_run(timeout_s=60.0, retry_for_s=0.0)
    call = StreamOpenAISpec(**values)
    return OpenAIModel(gateway, "chat:2", call, attempts, has_bodies=has_bodies)


def column(*values: object) -> Array:
    return np.array(values, object)


def test_a_text_follows_the_fixed_messages_of_a_chat() -> None:
    system = {"role": "system", "content": "Be brief."}
    gateway = Gateway(CHAT, CHAT | {"usage": None})
    body = {"messages": [system], "max_tokens": 8}

    outputs = openai_model(gateway, body=body).run({"text": column("a", b"b")})

    assert {name: array.tolist() for name, array in outputs.items()} == {
        "text": ["yes", "yes"],
        "finish_reason": ["stop", "stop"],
        "prompt_tokens": [7, 0],
        "completion_tokens": [1, 0],
    }
    assert gateway.requests == [
        (
            "/v1/chat/completions",
            {
                "messages": [system, {"role": "user", "content": text}],
                "max_tokens": 8,
                "model": "chat:2",
            },
        )
        for text in ("a", "b")
    ]


def test_a_text_is_the_prompt_of_a_completion() -> None:
    gateway = Gateway({"choices": [{"text": "no", "finish_reason": "length"}]})

    outputs = openai_model(gateway, path=OpenAIPath.COMPLETIONS).run({"text": column("a")})

    assert (outputs["text"][0], outputs["finish_reason"][0]) == ("no", "length")
    assert gateway.requests == [("/v1/completions", {"prompt": "a", "model": "chat:2"})]


def test_an_answer_without_text_has_an_empty_one() -> None:
    call = {"message": {"content": None, "tool_calls": []}, "finish_reason": "tool_calls"}

    outputs = openai_model(Gateway({"choices": [call]})).run({"text": column("a")})

    assert (outputs["text"][0], outputs["finish_reason"][0]) == ("", "tool_calls")


def vectors(*rows: list[float]) -> dict[str, Any]:
    data = [{"index": i, "embedding": row} for i, row in enumerate(rows)]
    return {"data": data[::-1]}


def test_texts_to_embed_share_a_request() -> None:
    gateway = Gateway(vectors([1.0, 2.0], [3.0, 4.0]))
    embedder = openai_model(gateway, path=OpenAIPath.EMBEDDINGS, body={"dimensions": 2})

    assert embedder.run({"text": column("a", "b")})["embedding"].tolist() == [[1, 2], [3, 4]]
    body = {"input": ["a", "b"], "dimensions": 2, "encoding_format": "base64", "model": "chat:2"}
    assert gateway.requests == [("/v1/embeddings", body)]


def test_vectors_of_another_size_are_asked_for_once_more() -> None:
    gateway = Gateway(vectors([1.0, 2.0]), vectors([1.0]), vectors([1.0]))
    embedder = openai_model(gateway, path=OpenAIPath.EMBEDDINGS)
    embedder.run({"text": column("a")})

    with pytest.raises(UnavailableError, match="answers with 1 numbers now, not 2"):
        embedder.run({"text": column("a")})
    assert embedder.run({"text": column("a")})["embedding"].tolist() == [[1.0]]


def test_a_fixed_size_is_in_the_signature_and_other_vectors_are_refused() -> None:
    gateway = Gateway(vectors([1.0, 2.0]), *(vectors([1.0]) for _ in range(2)))
    embedder = openai_model(gateway, path=OpenAIPath.EMBEDDINGS)

    assert embedder.fix_size() == 2
    assert embedder.signature.outputs[0].shape == (-1, 2)
    for _ in range(2):
        with pytest.raises(UnavailableError, match="not 2; it serves another model: run the job"):
            embedder.run({"text": column("a")})


def test_a_body_keeps_its_fields_but_not_its_model() -> None:
    gateway = Gateway(CHAT)
    record = b'{"model": "other", "stream": false, "messages": [], "max_tokens": 2, "top_p": 0.10}'
    bodies = openai_model(gateway, has_bodies=True, body={"max_tokens": 8, "seed": 1})

    response = bodies.run({"request": column(record)})["response"]

    assert json.loads(response[0]) == CHAT
    sent = {"max_tokens": 2, "seed": 1, "messages": [], "top_p": 0.1, "model": "chat:2"}
    assert gateway.requests == [("/v1/chat/completions", sent)]


@pytest.mark.parametrize("record", [b"text", b"[]", b"", b'{"stream": true}', b'{"a": 1'])
def test_a_body_that_is_none_is_the_records_error(record: bytes) -> None:
    with pytest.raises(InvalidArgumentError):
        openai_model(Gateway(), has_bodies=True).run({"request": column(record)})


@pytest.mark.parametrize(
    ("status", "retryable"),
    [(400, False), (413, False), (422, False), (500, False)]
    + [(status, True) for status in (401, 403, 404, 429, 501, 502, 503, 504)],
)
@pytest.mark.parametrize("path", OpenAIPath)
def test_the_status_says_whether_a_request_is_refused_or_waits(
    status: int, path: OpenAIPath, *, retryable: bool
) -> None:
    gateway = Gateway({"error": {"message": "too long", "type": "x"}}, status=status)

    with pytest.raises(HeadraceError, match="too long") as caught:
        openai_model(gateway, path=path).run({"text": column("a")})

    assert is_retryable(caught.value) == retryable
    assert not (status in {429, 503} and caught.value.retry_after_s != 3.0)


@pytest.mark.parametrize("answer", [{}, {"choices": []}, [], {"data": [{"index": 1}]}])
@pytest.mark.parametrize("path", OpenAIPath)
def test_an_answer_of_another_api_is_an_error(answer: object, path: OpenAIPath) -> None:
    with pytest.raises(ProtocolError):
        openai_model(Gateway(answer), path=path).run({"text": column("a")})


class Encoder(Gateway):
    """A gateway that embeds a text as its length, and refuses requests with a long one."""

    def send(self, send: SendMessage) -> HttpReply:
        texts = json.loads(send.message.content)["input"]
        self.requests.append(texts)
        if max(map(len, texts)) > LONGEST:
            return HttpReply(
                status=self.status, headers={}, body=b'{"error": {"message": "too long"}}'
            )
        body = json.dumps(vectors(*([float(len(text))] for text in texts))).encode()
        return HttpReply(status=200, headers={}, body=body)


@given(
    texts=st.lists(st.text(max_size=2 * LONGEST), min_size=1, max_size=12),
    status=st.sampled_from([400, 413, 500]),
)
def test_a_refused_text_fails_alone_and_others_share_requests(
    texts: list[str], status: int
) -> None:
    gateway = Encoder(status=status)
    model = openai_model(gateway, path=OpenAIPath.EMBEDDINGS)
    scorer = endpoint_scorer(model, "chat", max_batch_size=8)
    output = StreamOutputSpec(fields=["question"])
    settings = WorkerSettings(
        name="s",
        broker="",
        topics=[],
        group="",
        member="",
        format=StreamFormatSpec(fields={"text": "question"}),
        output=output,
    )
    scores = RecordScorer(scorer, make_codec(settings, scorer), max_batch_size=8)
    values = [json.dumps({"question": text}).encode() for text in texts]

    results = scores.answer(records(*values))

    for text, result in zip(texts, results, strict=True):
        if not 0 < len(text) <= LONGEST:
            assert isinstance(result, InvalidArgumentError | RuntimeFailedError)
            assert str(result) == ("too long" if text else "the text is empty")
        else:
            assert isinstance(result, EncodedAnswer)
            answer = {"question": text, "embedding": [float(len(text))]}
            assert json.loads(result.value or b"") == answer
    if all(0 < len(text) <= LONGEST for text in texts):
        assert gateway.requests == [texts]
