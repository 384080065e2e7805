"""The driver against a strict API server, over real connections."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.control.kubernetes import role_rules
from tests.e2e.control.system import System
from tests.e2e.kubernetes.lab import Lab
from tests.e2e.kubernetes.pods_here import ProcessRuntime, in_a_thread
from tests.kube_server.fixtures import kube_lab, kube_lab_of_processes, namespace  # noqa: F401
from tests.kubernetes_server import FakeApiServer, Store


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    with tempfile.TemporaryDirectory(prefix="hr-kube-") as directory:
        folder = Path(directory)
        token = folder / "token"
        token.write_text("a-token-that-nobody-guesses\n")
        monkeypatch.setenv("HEADRACE_INTERNAL_TOKEN_FILE", str(token))
        system = System(folder / "home")
        store = Store()
        runtime = ProcessRuntime(
            store=store, artifacts=system.home / "artifacts", folder=folder, token_file=token
        )
        server = FakeApiServer(store=store, runtime=runtime, rules=role_rules())
        try:
            with in_a_thread(server):
                yield Lab(system, server, runtime, folder)
                system.close()
        finally:
            runtime.end_all()
