"""What is said beside an export is said once."""

import pytest

from headrace.core.spec import parse_spec
from headrace.deploy import Observed, Place, Share, Target, read_facts
from headrace.deploy.features import Note, told_once
from headrace.deploy.gateway_api import GatewayApiOptions, gateway_api
from tests.unit.deploy.specs import ARTIFACTS, EXPORTERS

NAMES = ("a", "b", "c")


def test_the_same_of_several_places_is_said_once_with_all_of_them() -> None:
    notes = [
        Note("x", "e[0]"),
        Note("all"),
        Note("y", "e[0]"),
        Note("x", "e[1]"),
        Note("x", "e[0]"),
    ]

    assert told_once(notes) == ("e[0], e[1]: x", "all", "e[0]: y")


@pytest.mark.parametrize("target", [Target.GATEWAY_API, Target.ARGO_ROLLOUTS])
def test_what_is_about_every_endpoint_is_one_line(target: Target) -> None:
    endpoints = [{"name": name, "access": "public", "model": "fraud:2"} for name in NAMES]
    facts = read_facts(parse_spec({"version": 1, "endpoints": endpoints}), artifacts=ARTIFACTS)

    notes = EXPORTERS[target](facts).notes

    said = [note.partition(": ")[2] or note for note in notes]
    assert len(set(said)) == len(said)
    assert all(note.count("endpoints[1]") in {0, 1} for note in notes)
    assert any(all(f"endpoints[{i}]" in note for i in range(3)) for note in notes)


def test_services_without_grpc_are_told_in_one_line() -> None:
    spec = parse_spec(
        {
            "version": 1,
            "endpoints": [{"name": n, "access": "public", "model": "fraud:2"} for n in NAMES],
        }
    )
    shares = (Share(version="2", weight=100, model="fraud:2", revision="f" * 16),)
    facts = read_facts(spec, observed=dict.fromkeys(NAMES, Observed(shares=shares)))

    notes = gateway_api(facts, Place(), GatewayApiOptions()).notes

    (told,) = [note for note in notes if "no GRPCRoute" in note]
    assert told.startswith("endpoints[0], endpoints[1], endpoints[2]: no GRPCRoute")
