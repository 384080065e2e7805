import pytest

from headrace.core import Code, InvalidArgumentError
from headrace.core.spec import parse_spec
from headrace.deploy import Loss, NotExpressibleError, Target, read_facts
from headrace.deploy.features import accepted
from tests.unit.deploy.specs import EXPORTERS, facts_of

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
        f"  to leave them out all the same: {_FLAGS}",
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

    export = EXPORTERS[Target.GATEWAY_API](read_facts(spec, only=("fraud",)))

    assert export.documents


def test_an_approximation_is_said_once_for_all_that_is_in_a_part() -> None:
    facts = facts_of({"rollout": {"strategy": "canary", "metrics": {"errors": {"margin": 0.1}}}})

    notes = EXPORTERS[Target.ARGO_ROLLOUTS](facts).notes

    assert len([note for note in notes if "thresholds on the replicas' metrics" in note]) == 1
