"""What `tests/kube.py` lets pass is right: every kind of mistake is a complaint."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.kube import CRDS, Object, complaints

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


def test_what_is_right_is_no_complaint() -> None:
    assert complaints([ROUTE, BUDGET]) == []


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


def test_every_published_schema_refuses_what_it_does_not_know() -> None:
    paths = sorted(CRDS.glob("*.json"))

    assert len(paths) > 10
    for path in paths:
        group, kind, version = path.stem.rsplit("_", 2)
        one = {"apiVersion": f"{group}/{version}", "kind": kind, "metadata": {"name": "a"}}
        found = "; ".join(complaints([{**one, "nonsense": 1}]))
        assert "nonsense" in found, path.name
