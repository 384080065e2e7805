"""Which errors of an endpoint are a record's, and which are waited out?"""

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import pytest

from headrace.client import Client, ConnectionLostError
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
from headrace.streaming.endpoint import EndpointModel
from headrace.streaming.in_flight import is_retryable
from headrace.streaming.settings import ScoringEndpoint
from tests.unit.streaming.parts import MATRIX

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
    return EndpointModel(client, ScoringEndpoint(url="http://x", name="m", version="2"))


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
