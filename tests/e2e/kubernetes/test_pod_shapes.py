"""Pods of every shape, on a real API server that enforces the standard `restricted`."""

from dataclasses import replace
from typing import Any

import pytest

from headrace.control.kubernetes import objects_of
from headrace.control.kubernetes.manifest_cache import differences
from tests.kube_server.namespace import TestNamespace
from tests.unit.control.kubernetes.states import PLACE, a_state

pytestmark = [pytest.mark.e2e, pytest.mark.kube_server]

_TEMPLATE: dict[str, Any] = {
    "metadata": {"labels": {"sidecar.istio.io/inject": "true"}},
    "spec": {
        "schedulerName": "volcano",
        "affinity": {"podAntiAffinity": {}},
        "tolerations": [{"key": "spot", "operator": "Exists"}],
        "resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "mig"}],
        "volumes": [{"name": "scratch", "emptyDir": {"sizeLimit": "1024Mi"}}],
        "containers": [
            {
                "name": "replica",
                "resources": {"claims": [{"name": "gpu"}]},
                "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
            },
            {
                "name": "proxy",
                "image": "registry.test/proxy:1",
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                },
            },
        ],
    },
}


@pytest.mark.parametrize("is_platform_uid", [False, True])
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param({"pod_template": _TEMPLATE, "pod_labels": {"team": "a"}}, id="template"),
        pytest.param({"shm_size": "1024Mi"}, id="shm"),
        pytest.param({"model_volume": {"claim": "models"}}, id="claim"),
        pytest.param({"model_volume": {"image": "registry.test/m:{version}"}}, id="image"),
        pytest.param({"node_cache": {"claim": "cache"}}, id="cache"),
    ],
)
def test_a_shape_is_admitted_without_a_warning_and_does_not_drift(
    namespace: TestNamespace,
    shape: dict[str, Any],
    is_platform_uid: bool,  # pytest's
) -> None:
    installation = replace(
        PLACE,
        namespace=namespace.name,
        store_secret="artifacts",  # noqa: S106  # its name
        internal_secret="internal",  # noqa: S106  # its name
        is_platform_uid=is_platform_uid,
    )
    (wanted,) = [
        manifest
        for manifest in objects_of(a_state(**shape), installation=installation)
        if manifest["kind"] == "Deployment"
    ]

    answer = namespace.call(
        "PATCH",
        namespace.path("Deployment", wanted["metadata"]["name"]),
        params={"fieldManager": "headrace", "fieldValidation": "Strict"},
        json=wanted,
        headers={"content-type": "application/apply-patch+yaml"},
    )

    assert "warning" not in answer.headers
    assert differences(wanted, answer.json()) == []
