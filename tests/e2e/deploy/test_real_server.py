"""A real API server takes the chart and all exports, by the projects' published definitions.

KServe's definitions come from no registry of Go, npm or Python: its kinds are only checked by the
schemas of `tests/crds`.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import pytest

from headrace.deploy import ExportTarget
from tests.e2e.chart.sample_values import Values, combinations
from tests.kube import needs, rendered
from tests.kube_server.fixtures import applied, kube_lab, namespace  # noqa: F401
from tests.kube_server.namespace import TestNamespace
from tests.unit.deploy.specs import EXPORTERS, bodies, facts_of, split

pytestmark = [pytest.mark.e2e, pytest.mark.kube_server, pytest.mark.slow]

Applied = Callable[[str, Sequence[dict[str, Any]]], str]
_CANARY: Final = {
    "rollout": {"strategy": "canary", "metrics": {"latency": {"max_s": 0.2}}},
    "slo": {"latency_s": 0.2},
    "replicas": 3,
}
_EXPORTS: Final[dict[str, tuple[ExportTarget, dict[str, Any]]]] = {
    "routes": (ExportTarget.GATEWAY_API, {}),
    "split": (ExportTarget.GATEWAY_API, {"versions": split(90, 10), "timeout_s": 2.5}),
    "argo": (ExportTarget.ARGO_ROLLOUTS, {}),
    "argo-canary": (ExportTarget.ARGO_ROLLOUTS, _CANARY),
    "argo-blue-green": (
        ExportTarget.ARGO_ROLLOUTS,
        {"rollout": {"strategy": "blue-green", "preview_s": 120, "keep_s": 60}},
    ),
}


@pytest.mark.parametrize("name", list(_EXPORTS))
def test_an_export_is_applied(name: str, namespace: TestNamespace, applied: Applied) -> None:  # noqa: F811
    target, endpoint = _EXPORTS[name]
    objects = bodies(EXPORTERS[target](facts_of(endpoint)))
    for one in objects:
        one["metadata"]["namespace"] = namespace.name

    assert applied(namespace.name, objects) == ""


def test_an_unknown_field_is_refused(namespace: TestNamespace, applied: Applied) -> None:  # noqa: F811
    objects = bodies(EXPORTERS[ExportTarget.ARGO_ROLLOUTS](facts_of(_CANARY)))
    for one in objects:
        one["metadata"]["namespace"] = namespace.name
    rollout = next(one for one in objects if one["kind"] == "Rollout")
    rollout["spec"]["strategy"]["canary"]["stepz"] = []

    assert 'unknown field "stepz"' in applied(namespace.name, objects)


@pytest.mark.kube
@needs("helm")
@pytest.mark.parametrize(
    "values", [pytest.param(values, id=name) for name, values in combinations()]
)
def test_the_chart_is_applied_in_a_restricted_namespace(
    values: Values,
    namespace: TestNamespace,  # noqa: F811
    applied: Applied,  # noqa: F811
) -> None:
    assert applied(namespace.name, rendered(values, namespace=namespace.name)) == ""
