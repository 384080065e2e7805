"""By a kubeconfig, as people have one, and what is told where there is no way."""

import json
from pathlib import Path

import pytest

from headrace.control.kubernetes import role_rules
from headrace.control.kubernetes.api import ApiUnavailableError, ClusterApi, connect
from headrace.core import FailedPreconditionError, UnauthenticatedError
from tests.kube_server.namespace import TestNamespace

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]


@pytest.mark.kube_server
@pytest.mark.parametrize("context", ["", "test"])
async def test_a_kubeconfig_says_where_and_as_whom(
    namespace: TestNamespace, context: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, token = tmp_path / "config", namespace.token("test", role_rules())
    namespace.lab.cluster.write_kubeconfig(path, token)
    monkeypatch.setenv("KUBECONFIG", str(path))
    async with connect(identity="test", context=context) as http:
        listed = await ClusterApi(http=http, namespace=namespace.name).list("Pod", "a=b")

    assert listed.items == []


@pytest.mark.kube_server
async def test_a_wrong_token_is_told_with_the_way_out(
    namespace: TestNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    namespace.lab.cluster.write_kubeconfig(tmp_path / "config", "a-token-of-nobody")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    async with connect(identity="test") as http:
        with pytest.raises(UnauthenticatedError, match="service account"):
            await ClusterApi(http=http, namespace=namespace.name).get("Deployment", "x")


async def test_without_a_way_the_ways_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))

    with pytest.raises(FailedPreconditionError, match="--kube-url"):
        connect(identity="test")


async def test_a_context_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"apiVersion": "v1", "kind": "Config", "clusters": [], "contexts": []}
    (tmp_path / "config").write_text(json.dumps(config))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))

    with pytest.raises(FailedPreconditionError, match="elsewhere"):
        connect(identity="test", context="elsewhere")


async def test_a_server_that_is_away_is_unavailable() -> None:
    async with connect(identity="test", url="http://127.0.0.1:1") as http:
        with pytest.raises(ApiUnavailableError, match="get Pod x"):
            await ClusterApi(http=http, namespace="models").get("Pod", "x")
