import json

import pytest
from ruamel.yaml import YAML

from headrace import __version__
from headrace.core import InvalidArgumentError
from headrace.deploy import Format, Target, files_of, text_of
from tests.unit.deploy.specs import EXPORTERS, facts_of, split


@pytest.mark.parametrize("target", list(Target))
def test_yaml_says_what_json_says(target: Target) -> None:
    export = EXPORTERS[target](facts_of())

    read = [one for one in YAML(typ="safe").load_all(text_of(export, Format.YAML)) if one]

    assert read == [json.loads(json.dumps(document.body)) for document in export.documents]
    for (name, text), document in zip(
        files_of(export, Format.JSON).items(), export.documents, strict=True
    ):
        assert name == f"{document.name}.json"
        assert json.loads(text) == json.loads(json.dumps(document.body))


@pytest.mark.parametrize("target", list(Target))
def test_the_same_spec_gives_the_same_text(target: Target) -> None:
    texts = {text_of(EXPORTERS[target](facts_of()), Format.YAML) for _ in range(2)}

    assert len(texts) == 1


def test_a_file_says_who_wrote_it_and_what_is_only_about_the_same() -> None:
    export = EXPORTERS[Target.KONG](facts_of({"limits": {"requests_per_s": 5}}))

    head = [line for line in text_of(export, Format.YAML).splitlines() if line.startswith("#")]

    assert head[0] == f"# Written by `headrace export kong` of Headrace {__version__}."
    assert any("endpoints[0].limits.requests_per_s: fixed windows" in line for line in head)


def test_objects_of_kubernetes_are_one_list_in_json() -> None:
    document = json.loads(text_of(EXPORTERS[Target.ARGO_ROLLOUTS](facts_of()), Format.JSON))

    assert document["kind"] == "List"
    assert {item["kind"] for item in document["items"]} >= {"Rollout", "Service"}


def test_json_has_no_room_for_documents_of_several_kinds() -> None:
    export = EXPORTERS[Target.AWS_APIGATEWAY](facts_of({"versions": split(90, 10)}))
    with pytest.raises(InvalidArgumentError, match="--output FOLDER"):
        text_of(export, Format.JSON)
