"""Fixtures of tests on a real API server: `from tests.kube_server.fixtures import *`."""

from collections.abc import Iterator

import pytest

from scripts.kube_server import cache
from tests.kube_server.cluster import why_not
from tests.kube_server.lab import Lab, start_lab
from tests.kube_server.namespace import TestNamespace, a_namespace

__all__ = ["kube_lab", "kube_lab_of_processes", "namespace"]


def _programs_or_skip() -> None:
    reason = why_not()
    if not reason and not cache().is_dir():
        reason = "Kubernetes is not built: `make kube-server ARGS=--build` builds it, with Go"
    if reason:
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


@pytest.fixture
def namespace(kube_lab: Lab) -> Iterator[TestNamespace]:
    """A new namespace of the cluster with fake pods."""
    with a_namespace(kube_lab) as namespace:
        yield namespace
        kube_lab.kubelet.states.clear()
        kube_lab.kubelet.lingering.clear()
        kube_lab.kubelet.silent.clear()
