from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from headrace.core.spec.models import EndpointSpec, GatewaySpec, SystemSpec
from headrace.core.spec.parse import SpecError, parse_spec
from headrace.core.spec.part import SpecPart
from headrace.core.spec.rollout import CanarySpec, StickySpec

ENDPOINT = {"name": "e", "model": "/m.onnx"}
FULL: dict[str, Any] = {
    "version": 1,
    "gateway": {"request_log": {"mode": "sampled"}},
    "budget": {"cpus": 4},
    "tiers": [{"name": "gold", "requests_per_s": 5.0, "burst": None, "priority": 0}],
    "auth": {"jwt": [{"name": "c", "issuer": "i", "audiences": ["a"], "jwks_file": "/k"}]},
    "kubernetes": {"node_selector": {"a": "b"}, "resources": {"memory_limit": None}},
    "tracing": {"collector": "http://127.0.0.1:4318", "sample_ratio": 0.01},
    "endpoints": [
        {
            **ENDPOINT,
            "access": ["key"],
            "autoscale": {
                "max_replicas": 4,
                "schedule": [{"cron": "0 8 * * 1-5", "duration_s": 60, "min_replicas": 3}],
            },
            "rollout": {"strategy": "canary", "steps": None, "metrics": {"reward": None}},
            "sticky": {"header": "x-user-id"},
            "drift": {},
            "limits": {"requests_per_s": 5.0, "per_caller": {"max_concurrent": 2}},
            "payload_log": {"drop": ["caller"]},
        },
        {"name": "u", "upstream": {"url": "https://a", "protocol": "v2", "tls": {"ca_file": "/a"}}},
    ],
}


def parts(value: object) -> Iterator[SpecPart]:
    """All parts below a value."""
    match value:
        case SpecPart():
            yield value
            for name in value.__struct_fields__:
                yield from parts(getattr(value, name))
        case tuple():
            for item in value:
                yield from parts(item)
        case dict():
            yield from parts(tuple(value.values()))


def all_parts(spec: SystemSpec) -> list[SpecPart]:
    models: list[SystemSpec | EndpointSpec | GatewaySpec] = [spec, *spec.endpoints, spec.gateway]
    values = (getattr(model, name) for model in models for name in type(model).model_fields)
    return [part for value in values for part in parts(value)]


def test_a_document_keeps_what_it_sets_even_where_that_is_the_default() -> None:
    assert parse_spec(FULL).document() == FULL


def test_every_part_is_the_same_after_it_was_sent_to_another_process() -> None:
    found = all_parts(parse_spec(FULL))

    assert len({type(part) for part in found}) > 10
    for part in found:
        assert msgspec.json.decode(msgspec.json.encode(part), type=type(part)) == part


def test_null_stands_for_the_default_where_a_part_takes_null() -> None:
    endpoint = parse_spec(FULL).endpoints[0]

    assert isinstance(endpoint.rollout, CanarySpec)
    assert [step.weight for step in endpoint.rollout.steps] == [5, 25, 50]


def test_a_field_that_the_control_plane_fills_in_is_no_setting() -> None:
    entry = {**ENDPOINT, "sticky": {"header": "a", "salt": "b"}}

    with pytest.raises(SpecError, match=r"endpoints\[0\]\.sticky\.salt: is not a setting"):
        parse_spec({"endpoints": [entry]})


def test_all_mistakes_of_parts_are_reported_at_once_with_their_location() -> None:
    rollout = {"strategy": "canary", "alpha": 2.0, "steps": [{"weight": 0}], "bseline": True}
    entry = {**ENDPOINT, "rollout": rollout, "sticky": {"header": "a", "cookie": "b"}}

    with pytest.raises(SpecError) as caught:
        parse_spec({"endpoints": [entry]})

    messages = {mistake.place: mistake.message for mistake in caught.value.mistakes}
    assert messages["endpoints[0].rollout.canary.alpha"] == "should be less than 1, got 2.0"
    assert "endpoints[0].rollout.canary.steps[0].weight" in messages
    assert messages["endpoints[0].rollout.canary.bseline"] == (
        "is not a setting; did you mean 'baseline'?"
    )
    assert "needs exactly one of header, cookie and claim" in messages["endpoints[0].sticky"]


def test_a_part_built_in_code_sets_what_is_not_at_its_default() -> None:
    assert StickySpec(header="a").model_fields_set == {"header"}


def test_stored_state_may_have_a_default_that_the_file_may_not() -> None:
    """Releases before 0.2 stored an empty text for what the spec leaves out."""
    stored = b'{"header":"x","cookie":"","claim":"","salt":""}'

    assert msgspec.json.decode(stored, type=StickySpec) == StickySpec(header="x")
