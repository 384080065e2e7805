import re

import pytest

from headrace.core import InvalidArgumentError
from headrace.core.spec.parse import parse_spec
from headrace.deploy import Artifact, LiveEndpoint, VersionShare, read_facts
from tests.unit.deploy.specs import facts_of, spec_of, split


def test_a_reference_says_its_version_and_a_lone_file_is_the_first() -> None:
    assert [v.number for v in facts_of({"versions": split(90, 10)}).endpoints[0].versions] == [
        "1",
        "2",
    ]
    assert facts_of({"model": "/models/fraud.onnx"}).endpoints[0].newest.number == "1"


def test_a_name_alone_is_the_version_that_the_registry_knows() -> None:
    known = {"fraud": Artifact(filename="m.onnx", version="7")}

    assert facts_of({"model": "fraud"}, artifacts=known).endpoints[0].newest.number == "7"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"model": "fraud"}, "endpoints[0].model: 'fraud' has no version number"),
        (
            {"versions": [{"model": "/a.onnx", "weight": 50}, {"model": "/b.onnx", "weight": 50}]},
            "endpoints[0].versions[1].model: '/b.onnx' has no version number",
        ),
        (
            {
                "versions": [
                    {"model": "fraud:1", "weight": 50},
                    {"upstream": {"url": "http://m.test"}, "weight": 50},
                ]
            },
            "endpoints[0].versions[1]: version 1 of 'fraud' is listed twice",
        ),
    ],
)
def test_versions_have_to_be_known_and_differ(said: dict[str, object], told: str) -> None:
    with pytest.raises(InvalidArgumentError, match=re.escape(told)):
        facts_of(said, artifacts={})


def test_all_that_is_missing_is_told_at_once() -> None:
    spec = parse_spec({"endpoints": [{"name": "a", "model": "a"}, {"name": "b", "model": "b"}]})
    with pytest.raises(InvalidArgumentError) as caught:
        read_facts(spec)

    assert "endpoints[0].model" in str(caught.value)
    assert "endpoints[1].model" in str(caught.value)


def test_an_endpoint_that_is_not_there_is_told() -> None:
    with pytest.raises(InvalidArgumentError, match="--endpoint nobody: the spec has no endpoint"):
        read_facts(spec_of(), only=("nobody",))


def test_a_spec_without_endpoints_has_nothing_to_export() -> None:
    with pytest.raises(InvalidArgumentError, match="none to export"):
        read_facts(parse_spec({"version": 1}))


def test_a_running_system_overrules_the_specs_weights() -> None:
    shares = (
        VersionShare(version="1", weight=60, model="fraud:1", replicas=3),
        VersionShare(version="2", weight=40, model="fraud:2"),
    )
    facts = facts_of({"model": "fraud:1"}, observed={"fraud": LiveEndpoint(shares=shares)})

    (endpoint,) = facts.endpoints
    assert [(v.number, v.weight, v.replicas) for v in endpoint.versions] == [
        ("1", 60, 3),
        ("2", 40, 1),
    ]
    assert endpoint.stable().versions[0].weight == 100


def test_a_running_endpoint_that_takes_no_requests_is_told() -> None:
    shares = (VersionShare(version="1", weight=0, model="fraud:1"),)
    with pytest.raises(InvalidArgumentError, match="no version of 'fraud' has traffic now"):
        facts_of(observed={"fraud": LiveEndpoint(shares=shares)})
