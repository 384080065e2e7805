"""Export: names, notes, and how it is written."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from headrace import __version__
from headrace.control.kubernetes.names import label_value
from headrace.core import InvalidArgumentError
from headrace.core.spec.parse import parse_spec
from headrace.deploy import (
    ClusterTarget,
    DocumentFormat,
    ExportTarget,
    LiveEndpoint,
    VersionShare,
    files_of,
    read_facts,
    text_of,
)
from headrace.deploy.export import object_name
from headrace.deploy.features import ExportNote, unique_texts
from headrace.deploy.gateway_api import GatewayApiOptions, gateway_api
from tests.unit.deploy.specs import ARTIFACTS, EXPORTERS, facts_of, split


@pytest.mark.parametrize("target", list(ExportTarget))
def test_yaml_says_what_json_says(target: ExportTarget) -> None:
    export = EXPORTERS[target](facts_of())

    read = [one for one in YAML(typ="safe").load_all(text_of(export, DocumentFormat.YAML)) if one]

    assert read == [json.loads(json.dumps(document.body)) for document in export.documents]
    for (name, text), document in zip(
        files_of(export, DocumentFormat.JSON).items(), export.documents, strict=True
    ):
        assert name == f"{document.name}.json"
        assert json.loads(text) == json.loads(json.dumps(document.body))


@pytest.mark.parametrize("target", list(ExportTarget))
def test_the_same_spec_gives_the_same_text(target: ExportTarget) -> None:
    texts = {text_of(EXPORTERS[target](facts_of()), DocumentFormat.YAML) for _ in range(2)}

    assert len(texts) == 1


def test_a_file_says_who_wrote_it_and_what_is_only_about_the_same() -> None:
    export = EXPORTERS[ExportTarget.KONG](facts_of({"limits": {"requests_per_s": 5}}))

    head = [
        line for line in text_of(export, DocumentFormat.YAML).splitlines() if line.startswith("#")
    ]

    assert head[0] == f"# Written by `headrace export kong` of Headrace {__version__}."
    assert any("endpoints[0].limits.requests_per_s: fixed windows" in line for line in head)


def test_objects_of_kubernetes_are_one_list_in_json() -> None:
    document = json.loads(
        text_of(EXPORTERS[ExportTarget.ARGO_ROLLOUTS](facts_of()), DocumentFormat.JSON)
    )

    assert document["kind"] == "List"
    assert {item["kind"] for item in document["items"]} >= {"Rollout", "Service"}


def test_json_has_no_room_for_documents_of_several_kinds() -> None:
    export = EXPORTERS[ExportTarget.AWS_APIGATEWAY](facts_of({"versions": split(90, 10)}))
    with pytest.raises(InvalidArgumentError, match="--output FOLDER"):
        text_of(export, DocumentFormat.JSON)


_LABEL = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
_NAMES = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9_.-]{0,127}\Z")


@given(_NAMES, st.integers(1, 10**18 - 1))
def test_every_name_is_one_that_dns_takes(endpoint: str, version: int) -> None:
    assert _LABEL.fullmatch(object_name("headrace", endpoint, str(version)))
    assert _LABEL.fullmatch(object_name("", endpoint))
    assert len(object_name("headrace", endpoint, longest=55)) <= 55


def test_plain_names_stay_as_they_are() -> None:
    assert object_name("headrace", "fraud", "2") == "headrace-fraud-2"
    assert object_name("headrace", "fraud.v1").startswith("headrace-fraud-v1-")


@given(_NAMES, _NAMES)
def test_what_had_to_change_is_told_apart_by_a_hash(one: str, other: str) -> None:
    assert one == other or object_name("headrace", one) != object_name("headrace", other)


@given(_NAMES)
def test_a_label_takes_any_endpoint(name: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", label_value(name))


NAMES = ("a", "b", "c")


def test_the_same_of_several_places_is_said_once_with_all_of_them() -> None:
    notes = [
        ExportNote("x", "e[0]"),
        ExportNote("all"),
        ExportNote("y", "e[0]"),
        ExportNote("x", "e[1]"),
        ExportNote("x", "e[0]"),
    ]

    assert unique_texts(notes) == ("e[0], e[1]: x", "all", "e[0]: y")


@pytest.mark.parametrize("target", [ExportTarget.GATEWAY_API, ExportTarget.ARGO_ROLLOUTS])
def test_what_is_about_every_endpoint_is_one_line(target: ExportTarget) -> None:
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
    shares = (VersionShare(version="2", weight=100, model="fraud:2", revision="f" * 16),)
    facts = read_facts(spec, observed=dict.fromkeys(NAMES, LiveEndpoint(shares=shares)))

    notes = gateway_api(facts, ClusterTarget(), GatewayApiOptions()).notes

    (told,) = [note for note in notes if "no GRPCRoute" in note]
    assert told.startswith("endpoints[0], endpoints[1], endpoints[2]: no GRPCRoute")
