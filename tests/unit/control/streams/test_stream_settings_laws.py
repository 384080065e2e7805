"""What the spec takes, workers take: no worker is the first to find a mistake."""

from typing import Any

import msgspec
from hypothesis import event, given
from hypothesis import strategies as st

from headrace.control.desired.resolve_streams import stream_settings
from headrace.core import ReplicaSettings
from headrace.core.spec.parse import SpecError, StreamSpec, parse_spec
from headrace.streaming.settings import (
    PushSettings,
    ScoringEndpoint,
    WorkerSettings,
    check_settings,
)

TOPICS = ["in", "out", "pay-dead-letters", "more"]
NUMBERS = st.sampled_from([-1.0, 0.0, 1e-6, 0.3, 0.5, 1, 2, 60, 3600, 1e300, float("nan")])
WINDOWS = st.fixed_dictionaries(
    {"name": st.sampled_from(["", "a", "b"]), "size_s": NUMBERS},
    optional={
        "slide_s": NUMBERS,
        "function": st.sampled_from(["count", "sum", "mean", "median"]),
        "field": st.sampled_from(["", "amount"]),
    },
)
VERSIONS = {"model": st.just("m:1"), "endpoint": st.sampled_from(["m", "nobody"])}
STREAMS = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["pay", "a/b"]),
        "source": st.fixed_dictionaries(
            {
                "broker": st.sampled_from(["log:x", "nats://host"]),
                "topics": st.lists(st.sampled_from(TOPICS), max_size=2),
            }
        ),
    },
    optional={
        **VERSIONS,
        "sink": st.fixed_dictionaries({"topic": st.sampled_from(TOPICS)}),
        "dead_letters": st.sampled_from(TOPICS),
        "format": st.fixed_dictionaries({"kind": st.sampled_from(["json", "raw", "avro"])}),
        "errors": st.fixed_dictionaries(
            {},
            optional={
                "policy": st.sampled_from(["dead_letter", "skip", "stop"]),
                "first_delay_s": NUMBERS,
                "max_delay_s": NUMBERS,
            },
        ),
        "windows": st.fixed_dictionaries(
            {"windows": st.lists(WINDOWS, max_size=3)},
            optional={"lateness_s": NUMBERS, "ahead_s": NUMBERS, "checkpoint_s": NUMBERS},
        ),
        "push": st.just({"view": "v"}),
        "max_batch_size": st.integers(-1, 3),
        "max_delay_s": NUMBERS,
        "model_threads": st.integers(-1, 2),
    },
)

GOOD: dict[str, Any] = {
    "name": "pay",
    "source": {"broker": "log:x", "topics": ["in"]},
    "sink": {"topic": "out"},
    "model": "m:2",
}
BESIDE: dict[str, Any] = {
    "windows": {"windows": [{"name": "a", "size_s": 60, "slide_s": 0.5}]},
    "push": {"view": "v"},
}


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """A stream that is right, with a few parts of one that may be anything."""
    found = {**GOOD, **{key: BESIDE[key] for key in draw(st.sets(st.sampled_from(sorted(BESIDE))))}}
    other = draw(STREAMS)
    for key in draw(st.sets(st.sampled_from(sorted(other)), max_size=3)):
        found[key] = other[key]
    for key in draw(st.sets(st.sampled_from(["model", "sink"]))):
        del found[key]
    return found


def resolved(stream: StreamSpec) -> WorkerSettings:
    """As a resolver does it, with models and a view that it would have found."""
    told = stream_settings(stream)

    def model(name: str | None) -> ReplicaSettings | None:
        return None if name is None else ReplicaSettings(model_name="m", model_version="1", path="")

    def endpoint(name: str | None) -> ScoringEndpoint | None:
        return None if name is None else ScoringEndpoint(url="", name=name)

    push = stream.push
    return msgspec.structs.replace(
        told,
        model=model(stream.model),
        endpoint=endpoint(stream.endpoint),
        features=None if push is None else PushSettings(view=push.view),
    )


@given(document=documents())
def test_what_the_spec_takes_workers_take(document: dict[str, Any]) -> None:
    try:
        spec = parse_spec({"endpoints": [{"name": "m", "model": "m:1"}], "streams": [document]})
    except SpecError:
        event("refused")
        return
    event("taken")
    told = resolved(spec.streams[0])

    check_settings(told)
    assert msgspec.json.decode(msgspec.json.encode(told), type=WorkerSettings) == told
