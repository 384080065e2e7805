"""What `tests/kube.py` lets pass is right: every kind of mistake is a complaint."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.kube import CRDS, MADE_GROUPS, Object, complaints, needs_crds

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ROUTE: Object = {
    "apiVersion": "gateway.networking.k8s.io/v1",
    "kind": "HTTPRoute",
    "metadata": {"name": "a", "labels": {"a": "b"}},
    "spec": {
        "parentRefs": [{"name": "public"}],
        "rules": [{"backendRefs": [{"name": "a", "port": 8000, "weight": 90}]}],
    },
}
BUDGET: Object = {
    "apiVersion": "policy/v1",
    "kind": "PodDisruptionBudget",
    "metadata": {"name": "a"},
    "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"a": "b"}}},
}


@needs_crds()
def test_what_is_right_is_no_complaint() -> None:
    assert complaints([ROUTE, BUDGET]) == []


@needs_crds()
@pytest.mark.parametrize(
    ("right", "spoil", "said"),
    [
        (ROUTE, lambda o: o["spec"]["rules"][0]["backendRefs"][0].update(wieght=1), "wieght"),
        (ROUTE, lambda o: o["spec"]["rules"][0]["backendRefs"][0].update(port="http"), "port"),
        (ROUTE, lambda o: o["spec"].update(hostname="a"), "hostname"),
        (ROUTE, lambda o: o.update(status2={}), "status2"),
        (ROUTE, lambda o: o["metadata"].update(lables={}), "lables"),
        (ROUTE, lambda o: o["metadata"].update(name="A_b"), "A_b"),
        (ROUTE, lambda o: o["metadata"]["labels"].update(a="x" * 64), "no label"),
        (ROUTE, lambda o: o.update(apiVersion="gateway.networking.k8s.io/v9"), "nothing is known"),
        (ROUTE, lambda o: o.update(kind="HttpsRoute"), "nothing is known"),
        (BUDGET, lambda o: o["spec"].update(maxUnavailabel=1), "maxUnavailabel"),
        (BUDGET, lambda o: o["spec"]["selector"].update(matchLabels=["a"]), "matchLabels"),
        (BUDGET, lambda o: o.update(apiVersion="policy/v1beta1"), "nothing is known"),
    ],
)
def test_every_mistake_is_a_complaint(
    right: Object, spoil: Callable[[Any], Any], said: str
) -> None:
    wrong = copy.deepcopy(right)
    spoil(wrong)

    assert said in "; ".join(complaints([wrong]))


@needs_crds()
def test_every_made_schema_refuses_what_it_does_not_know() -> None:
    paths = sorted(CRDS.glob("*.json"))

    assert {path.stem.split("_")[0] for path in paths} == MADE_GROUPS
    for path in paths:
        group, kind, version = path.stem.rsplit("_", 2)
        one = {"apiVersion": f"{group}/{version}", "kind": kind, "metadata": {"name": "a"}}
        found = "; ".join(complaints([{**one, "nonsense": 1}]))
        assert "nonsense" in found, path.name


@needs_crds()
def test_made_schemas_are_closed_all_the_way_down() -> None:
    for path in CRDS.glob("*.json"):
        assert _open_objects(json.loads(path.read_text()), "$") == [], path.name


def _open_objects(node: Any, place: str) -> list[str]:
    """Where a part of a schema names properties and lets others through."""
    if isinstance(node, list):
        return [
            found for i, one in enumerate(node) for found in _open_objects(one, f"{place}[{i}]")
        ]
    if not isinstance(node, dict):
        return []
    is_open = (
        isinstance(node.get("properties"), dict) and node.get("additionalProperties") is not False
    )
    below = (_open_objects(one, f"{place}.{key}") for key, one in node.items())
    return [*([place] if is_open and "type" in node else []), *(x for each in below for x in each)]
