"""Settings that a spec's writer set, and the losses of an export."""

from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import Code, InvalidArgumentError
from headrace.core.spec.parse import SystemSpec, parse_spec
from headrace.deploy import ExportTarget, Loss, NotExpressibleError, read_facts
from headrace.deploy.features import accepted, explicit_settings, is_within
from tests.unit.deploy.specs import EXPORTERS, facts_of, known_fields, spec_of, split

_STICKY = Loss("endpoints[3].sticky", "cannot", "leave it out")
_FLAGS = "--allow-loss endpoints[].sticky --allow-loss endpoints[].limits.burst"
_BURST = Loss("endpoints[3].limits.burst", "has none", "leave it out")


def test_losses_are_refused_together() -> None:
    with pytest.raises(NotExpressibleError) as caught:
        accepted("kong", [_STICKY, _BURST, _STICKY], [])

    assert caught.value.code is Code.UNIMPLEMENTED
    assert caught.value.losses == (_STICKY, _BURST)
    assert str(caught.value).splitlines() == [
        "kong cannot express 2 settings of the spec:",
        "  endpoints[3].sticky: cannot; leave it out",
        "  endpoints[3].limits.burst: has none; leave it out",
        f"  to leave them out: {_FLAGS}",
    ]


@pytest.mark.parametrize(
    "field", ["endpoints[].limits", "endpoints[7].limits", "endpoints[].limits.burst"]
)
def test_a_field_stands_for_all_that_is_in_it_wherever_it_is(field: str) -> None:
    assert accepted("kong", [_BURST], [field]) == (_BURST,)


@pytest.mark.parametrize("field", ["endpoints[].limit", "endpoints[].stiky", ""])
def test_leave_for_what_is_not_lost_is_a_mistake(field: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"that is not lost here|cannot express"):
        accepted("kong", [], [field])


def test_only_exported_endpoints_can_lose_something() -> None:
    spec = parse_spec(
        {
            "endpoints": [
                {"name": "fraud", "model": "fraud:2", "access": "public"},
                {"name": "other", "model": "other:1", "sticky": {"header": "x"}},
            ]
        }
    )

    export = EXPORTERS[ExportTarget.GATEWAY_API](read_facts(spec, only=("fraud",)))

    assert export.documents


def test_an_approximation_is_said_once_for_all_that_is_in_a_part() -> None:
    facts = facts_of({"rollout": {"strategy": "canary", "metrics": {"errors": {"margin": 0.1}}}})

    notes = EXPORTERS[ExportTarget.ARGO_ROLLOUTS](facts).notes

    assert len([note for note in notes if "thresholds on the replicas' metrics" in note]) == 1


_HINT: Final = {"cron": "0 8 * * 1", "duration_s": 60, "min_replicas": 2}
_FIELDS: Final = frozenset(known_fields(SystemSpec))


def test_what_is_written_is_told_with_its_place() -> None:
    spec = spec_of({"timeout_s": 5, "versions": split(90, 10)})

    told = {setting.location: setting.value for setting in explicit_settings(spec)}

    assert told["endpoints[0].timeout_s"] == 5
    assert told["endpoints[0].versions[1].weight"] == 10
    assert "endpoints[0].replicas" not in told


def test_what_a_mapping_holds_is_told_at_its_name() -> None:
    pods = {"image": "registry.test/replica:1", "resources": {"gpus": 1}}
    spec = spec_of(kubernetes={"image": "registry.test/all:1", "endpoints": {"fraud": pods}})

    told = {setting.location: setting for setting in explicit_settings(spec)}

    assert told["kubernetes.image"].value == "registry.test/all:1"
    one = told["kubernetes.endpoints[fraud].resources.gpus"]
    assert (one.field, one.value) == ("kubernetes.endpoints[].resources.gpus", 1)
    assert one.field in _FIELDS
    assert "kubernetes.endpoints[fraud].resources.cpu" not in told


def test_a_default_that_is_written_out_says_nothing() -> None:
    told = [
        setting.location
        for setting in explicit_settings(spec_of({"timeout_s": 30.0, "replicas": 1}))
    ]

    assert "endpoints[0].timeout_s" not in told
    assert "endpoints[0].replicas" not in told


@pytest.mark.parametrize(
    ("document", "place"),
    [
        ({"rollout": {"strategy": "canary", "alpha": 0.1}}, "endpoints[0].rollout.alpha"),
        ({"limits": {"per_caller": {"burst": 3, "requests_per_s": 1}}}, "limits.per_caller.burst"),
        ({"labels": {"out": ["no", "yes"]}}, "endpoints[0].labels"),
        ({"autoscale": {"schedule": [_HINT]}}, "schedule[0].cron"),
    ],
)
def test_parts_within_parts_are_told(document: dict[str, Any], place: str) -> None:
    told = [setting.location for setting in explicit_settings(spec_of(document))]

    assert any(found.endswith(place) for found in told), told


@given(st.sampled_from(sorted(_FIELDS)), st.sampled_from(sorted(_FIELDS)))
def test_only_what_follows_a_dot_or_a_bracket_is_within(field: str, outer: str) -> None:
    rest = field.removeprefix(outer) if field.startswith(outer) else None

    assert is_within(field, outer) == (rest is not None and rest[:1] in {"", ".", "["})


def test_all_kinds_of_rollouts_are_known() -> None:
    assert {
        f"endpoints[].rollout.{name}" for name in ("steps", "keep_s", "weight", "promotes")
    } <= (_FIELDS)
