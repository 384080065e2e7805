"""One system for all clients: SmolLM2, a cross-encoder and a stub, for callers with a key."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from tests import hub_folders
from tests.clients.table import PROGRAMS, table
from tests.e2e.control.system import System
from tests.e2e.gateway.test_openai import MODEL, running_stub
from tests.gguf_models import smollm2
from tests.ports import free_port

ROOT: Final = Path(__file__).parents[2]
ENVIRONMENT: Final = ROOT / ".venv-clients"
_WITHIN_S: Final = 600.0
OUTCOMES: Final = pytest.StashKey[dict[tuple[str, str], list[str]]]()


@dataclass(kw_only=True)
class Clients:
    """Runs a client's program against a server once, and keeps what its operations told."""

    url: str
    key: str
    errors: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)

    def error(self, client: str, operation: str, server: str) -> str:
        """Return why an operation failed; empty if it did not."""
        if (client, server) not in self.errors:
            self.errors[client, server] = self._run(client, server)
        return self.errors[client, server].get(operation, "the program does not have the operation")

    def _run(self, client: str, server: str) -> dict[str, str]:
        program = PROGRAMS[client]
        command: Sequence[str | Path]
        if program.endswith(".mjs"):
            command = ["node", Path(__file__).parent / "programs" / program]
        else:
            command = [ENVIRONMENT / "bin" / "python", "-m", f"tests.clients.programs.{program}"]
        ranker = "stub" if server == "stub" else "ranker"
        with tempfile.TemporaryFile() as errors:
            done = subprocess.run(
                [*command, self.url, self.key, server, ranker, ENVIRONMENT / "node"],
                stdout=subprocess.PIPE,
                stderr=errors,
                timeout=_WITHIN_S,
                cwd=ROOT,
                check=False,
            )
            errors.seek(0)
            assert done.returncode == 0, errors.read().decode()[-4000:]
        # Clients may print lines of their own.
        lines = [line for line in done.stdout.decode().splitlines() if line.startswith("{")]
        told = map(json.loads, lines)
        return {one["operation"]: one["error"] for one in told}


@pytest.fixture(scope="session")
def clients(request: pytest.FixtureRequest) -> Iterator[Clients]:
    if not ENVIRONMENT.exists():
        pytest.skip("there is no .venv-clients: make setup ENV=clients")
    with tempfile.TemporaryDirectory(prefix="hr-") as directory:
        folder = Path(directory)
        folder.chmod(0o755)
        model = folder / "smollm2.gguf"
        shutil.copy(smollm2(request), model)
        ranker = hub_folders.write_text(folder / "ranker", labels=("LABEL_0",))
        port = free_port()
        upstream = {"url": f"http://127.0.0.1:{port}", "protocol": "openai", "model": MODEL}
        endpoints: list[dict[str, Any]] = [
            {
                "name": "smollm2",
                "model": str(model),
                "llm": {"slots": 2, "context_tokens": 2048, "pooling": "mean"},
                "batching": {"intra_op_threads": 1},
                "timeout_s": 120,
            },
            {"name": "stub", "upstream": {**upstream, "health_path": None}},
            {"name": "ranker", "model": str(ranker)},
        ]
        system = System(folder / "home")
        with running_stub(str(port), MODEL):
            try:
                system.start(*({**endpoint, "access": ["key"]} for endpoint in endpoints))
                system.wait_ready(120)
                scopes = [f"infer:{endpoint['name']}" for endpoint in endpoints]
                _, made = system.post("/api/v1/keys", {"name": "clients", "scopes": scopes})
                yield Clients(url=system.where().http_url, key=made["key"])
            finally:
                system.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note what came of each operation, for the table at the end."""
    report = yield
    parameters: dict[str, str] = getattr(getattr(item, "callspec", None), "params", {})
    if report.when == "call" and "client" in parameters:
        pair = parameters["client"], parameters["operation"]
        outcomes = item.config.stash.setdefault(OUTCOMES, {})
        outcomes.setdefault(pair, []).append(report.outcome)
    return report


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the table of clients and operations: passed, failed or skipped with both servers."""
    outcomes = config.stash.get(OUTCOMES, {})
    if outcomes:
        marks = {pair: "/".join(sorted(set(told))) for pair, told in outcomes.items()}
        terminalreporter.section("clients, against SmolLM2 (or a cross-encoder) and a stub")
        terminalreporter.write_line(table(marks))
