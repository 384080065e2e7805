"""By a kubeconfig, as people have one, and what is told where there is no way."""

import json
from pathlib import Path

import pytest

from headrace.control.kubernetes.api import ApiUnavailableError, ClusterApi, connect
from headrace.core import FailedPreconditionError, UnauthenticatedError
from tests.kubernetes_server import FakeApiServer

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]


def a_kubeconfig(path: Path, url: str, token: str) -> str:
    path.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "here",
                "clusters": [{"name": "here", "cluster": {"server": url}}],
                "users": [{"name": "me", "user": {"token": token}}],
                "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
            }
        )
    )
    return str(path)


@pytest.mark.parametrize("context", ["", "here"])
async def test_a_kubeconfig_says_where_and_as_whom(
    context: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FakeApiServer(token="mine") as server:  # noqa: S106  # of a test
        monkeypatch.setenv("KUBECONFIG", a_kubeconfig(tmp_path / "config", server.url, "mine"))
        async with connect(identity="test", context=context) as http:
            listed = await ClusterApi(http=http, namespace="models").list("Pod", "a=b")

    assert listed.items == []


async def test_a_wrong_token_is_told_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FakeApiServer(token="mine") as server:  # noqa: S106  # of a test
        monkeypatch.setenv("KUBECONFIG", a_kubeconfig(tmp_path / "config", server.url, "other"))
        async with connect(identity="test") as http:
            with pytest.raises(UnauthenticatedError, match="service account"):
                await ClusterApi(http=http, namespace="models").get("Deployment", "x")


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
    path = a_kubeconfig(tmp_path / "config", "http://127.0.0.1:1", "mine")
    monkeypatch.setenv("KUBECONFIG", path)

    with pytest.raises(FailedPreconditionError, match="elsewhere"):
        connect(identity="test", context="elsewhere")


async def test_a_server_that_is_away_is_unavailable() -> None:
    async with connect(identity="test", url="http://127.0.0.1:1") as http:
        with pytest.raises(ApiUnavailableError, match="get Pod x"):
            await ClusterApi(http=http, namespace="models").get("Pod", "x")
