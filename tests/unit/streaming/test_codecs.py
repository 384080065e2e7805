"""Settings that do not fit the model, or one another, are refused with the way out."""

from typing import Any

import msgspec
import pytest

from headrace.core import Datatype, InvalidArgumentError, ModelSignature
from headrace.core.spec.stream_parts import (
    FailurePolicy,
    FormatKind,
    StreamErrorsSpec,
    StreamFormatSpec,
    StreamOutputSpec,
)
from headrace.streaming.codecs import make_codec
from headrace.streaming.settings import ScoringEndpoint, WorkerSettings, check_settings
from tests.unit.streaming.parts import MATRIX, TOKENS, scorer, signature, spec
from tests.unit.streaming.world import settings

TWO = signature(
    spec("a", Datatype.FP32, -1),
    spec("b", Datatype.FP32, -1),
    outputs=[spec("p", Datatype.FP32, -1), spec("q", Datatype.FP32, -1)],
)
OPEN = signature(spec("x", Datatype.FP32, -1, -1, -1))


def told(**changes: Any) -> WorkerSettings:  # noqa: ANN401  # as the settings take them
    endpoint = ScoringEndpoint(url="http://127.0.0.1:8000", name="m")
    return settings(**{"endpoint": endpoint, "output": StreamOutputSpec(), **changes})


def of(kind: str) -> StreamFormatSpec:
    return StreamFormatSpec(kind=FormatKind(kind))


@pytest.mark.parametrize(
    ("model", "changes", "text"),
    [
        (
            MATRIX,
            {"format": StreamFormatSpec(fields={"y": "z"})},
            "input 'y', but the model has: x",
        ),
        (
            MATRIX,
            {"format": StreamFormatSpec(columns={"x": []})},
            "the model does not name the columns",
        ),
        (MATRIX, {"format": StreamFormatSpec(columns={"x": ["a"]})}, "3 columns, but 1 are named"),
        (
            MATRIX,
            {"format": StreamFormatSpec(columns={"x": ["a", "a", "b"]})},
            "'a' is used for two",
        ),
        (TWO, {"format": StreamFormatSpec(columns={"a": ["c"]})}, "not a matrix"),
        (TWO, {"format": StreamFormatSpec(fields={"a": "b"})}, "'b' is used for two"),
        (MATRIX, {"output": StreamOutputSpec(outputs=["p"])}, "'p', but the model has: sum"),
        (MATRIX, {"output": StreamOutputSpec(fields=["sum"])}, "'sum' twice"),
        (MATRIX, {"output": StreamOutputSpec(fields=[""])}, "no name"),
        (TWO, {"format": of("raw")}, "models with one input"),
        (OPEN, {"format": of("raw")}, "more than one dimension is variable"),
        (
            MATRIX,
            {"format": of("raw"), "output": StreamOutputSpec(key="id")},
            "no fields to pass on",
        ),
        (TWO, {"sink_format": of("raw")}, "choose one in output.outputs"),
        (MATRIX, {"sink_format": of("open_inference")}, "applies to input and output"),
        (MATRIX, {"format": of("open_inference"), "output": StreamOutputSpec(key="id")}, "remove"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(
    model: ModelSignature, changes: dict[str, Any], text: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=text):
        make_codec(told(**changes), scorer(model))


@pytest.mark.parametrize("kind", ["json", "open_inference"])
def test_every_model_has_a_codec_of(kind: str) -> None:
    for model in (MATRIX, TOKENS, TWO, OPEN):
        assert make_codec(told(format=of(kind)), scorer(model)) is not None


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"sink": "in"}, "answers would be scored again"),
        ({"dead_letters": "in"}, "would never end"),
        ({"dead_letters": ""}, "needs a topic"),
        ({"endpoint": None}, "set exactly one of model and endpoint"),
        ({"errors": StreamErrorsSpec(max_delay_s=0.01)}, "errors.max_delay_s"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=text):
        check_settings(told(**changes))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("topics", []),
        ("max_batch_size", 0),
        ("max_delay_s", -1.0),
        ("commit_interval_s", -1.0),
        ("model_threads", 0),
        ("errors", {"first_delay_s": 0.0}),
        ("windows", {"windows": [{"name": "n", "size_s": 0}]}),
        ("name", "a/b"),
    ],
)
def test_settings_out_of_their_range_are_not_read(field: str, value: object) -> None:
    document = {**msgspec.to_builtins(told()), field: value}
    with pytest.raises(msgspec.ValidationError, match=field):
        msgspec.convert(document, WorkerSettings)


def test_a_stream_that_skips_needs_no_topic_for_dead_letters() -> None:
    check_settings(told(dead_letters="", errors=StreamErrorsSpec(policy=FailurePolicy.SKIP)))
