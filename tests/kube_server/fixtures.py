"""Fixtures of tests on a real API server, which a conftest or a test module imports."""

import json
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from scripts.kube_server import BuildError, cache, custom_resources
from tests.kube_server.cluster import why_not
from tests.kube_server.lab import Lab, start_lab
from tests.kube_server.namespace import TestNamespace, a_namespace

_KUBECTL_WITHIN_S: Final = 300

__all__ = ["applied", "kube_lab", "kube_lab_of_processes", "namespace"]


def why_no_cluster() -> str:
    """Return why there is no cluster here; empty if there can be one."""
    if reason := why_not():
        return reason
    if not cache().is_dir():
        return "Kubernetes is not built: `make kube-server ARGS=--build` builds it, with Go"
    return ""


def _programs_or_skip() -> None:
    if reason := why_no_cluster():
        pytest.skip(reason)


@pytest.fixture(scope="session")
def kube_lab() -> Iterator[Lab]:
    """A cluster whose pods are fake, one for each worker of pytest."""
    _programs_or_skip()
    with start_lab(cache()) as lab:
        yield lab


@pytest.fixture(scope="module")
def kube_lab_of_processes() -> Iterator[Lab]:
    """A cluster of this module whose pods are processes."""
    _programs_or_skip()
    with start_lab(cache(), is_fake=False) as lab:
        yield lab


@pytest.fixture(scope="session")
def applied(kube_lab: Lab) -> Callable[[str, Sequence[dict[str, Any]]], str]:
    """`applied(namespace, objects)`: what the server says against objects, as a dry run.

    It has the custom resources of the projects that the chart and exports are for.
    """
    try:
        definitions = custom_resources()
    except BuildError as error:
        pytest.skip(str(error))
    apply = ("apply", "--server-side", "--filename")
    _kubectl(kube_lab, *apply, definitions)
    assert _kubectl(kube_lab, "wait", "--for=condition=Established", "crd", "--all") == ""

    def dry_run(namespace: str, objects: Sequence[dict[str, Any]]) -> str:
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        strict = ("--dry-run=server", "--validate=strict", "--namespace", namespace)
        return _kubectl(kube_lab, *apply, "-", *strict, text=text)

    return dry_run


def _kubectl(lab: Lab, *arguments: str | Path, text: str = "") -> str:
    """Run kubectl as administrator; return its errors and warnings."""
    done = subprocess.run(  # noqa: S603  # the cluster's own program
        [lab.cluster.programs / "kubectl", "--kubeconfig", lab.cluster.kubeconfig, *arguments],
        input=text, capture_output=True, text=True, check=False, timeout=_KUBECTL_WITHIN_S,
    )  # fmt: skip
    return done.stderr


@pytest.fixture
def namespace(kube_lab: Lab) -> Iterator[TestNamespace]:
    """A new namespace of the cluster with fake pods."""
    with a_namespace(kube_lab) as namespace:
        yield namespace
        kube_lab.kubelet.states.clear()
        kube_lab.kubelet.lingering.clear()
        kube_lab.kubelet.silent.clear()
