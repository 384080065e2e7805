"""Secrets that a stream names reach its workers, and no model."""

import contextlib
from pathlib import Path
from typing import Any

import psutil
import pytest

from headrace.control.local.sandbox import Environment, Sandbox
from headrace.control.sandboxed.run import SandboxedInspector
from headrace.core import UnsupportedModelError
from headrace.testing import models
from tests.e2e.control.system import System
from tests.processes import command_line

pytestmark = pytest.mark.e2e

SECRETS = {"BROKER_PASSWORD": "hush", "FILE_PASSWORD": "hush too"}
OTHERS = {"HTTPS_PROXY": "http://proxy:1", "AWS_PROFILE": "prod"}


def environment_of(system: System, module: str) -> dict[str, str]:
    (found,) = [one for one in system.processes() if module in command_line(one)]
    environment: dict[str, str] = found.environ()
    return environment


def test_a_replica_has_no_secret_of_a_stream_and_a_worker_has_only_its_own(
    system: System, mlp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**SECRETS, **OTHERS, "OTHER_PASSWORD": "hush"}.items():
        monkeypatch.setenv(name, value)
    options = system.home.parent / "client.properties"
    options.write_text("sasl.username=${FILE_PASSWORD}\n")
    broker = "kafka://127.0.0.1:1?sasl.password=${{{0}}}&properties_file={1}"
    stream: dict[str, Any] = {
        "name": "s",
        "source": {"broker": broker.format("BROKER_PASSWORD", options), "topics": ["in"]},
        "sink": {"topic": "out"},
        "model": str(mlp),
    }
    other = {**stream, "name": "other", "paused": True}
    other["source"] = {**stream["source"], "broker": broker.format("OTHER_PASSWORD", options)}
    document = {
        "version": 1,
        "endpoints": [{"name": "m", "model": str(mlp)}],
        "streams": [stream, other],
    }
    system.start(spec=document)
    system.wait_for(lambda status: all(one["ready"] for one in status["endpoints"]))

    found: dict[str, dict[str, str]] = {}

    def both_were_seen(_: object) -> bool:
        """One ends again and again, as its broker is not there: seen at once they may never be."""
        for process in system.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                words, environment = process.cmdline(), process.environ()
                for name in ("s", "other"):
                    if "headrace.streaming" in words and any(f"/{name}-0." in w for w in words):
                        found[name] = environment
        return len(found) == 2

    system.wait_for(both_were_seen)
    replica = environment_of(system, "headrace.serving")

    assert replica.items() >= OTHERS.items()
    assert not {*SECRETS, "OTHER_PASSWORD"} & set(replica)
    assert found["s"].items() >= {**SECRETS, **OTHERS}.items()
    assert "OTHER_PASSWORD" not in found["s"]
    assert "BROKER_PASSWORD" not in found["other"]


def test_what_inspects_models_forgets_a_secret_that_is_named_later(tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    load = "    def load(self, path):\n        raise ValueError('LATER' in os.environ)\n"
    path.write_text(f"import os\n{models.python_double()}\n{load}")
    given = {"PATH": "/bin", "LATER": "hush"}
    sandbox = Sandbox.of_home(tmp_path)
    sandbox.environment = Environment(variables=given)
    inspect = SandboxedInspector(sandbox)
    with pytest.raises(UnsupportedModelError, match="True"):
        inspect(path, allow_code=True)
    sandbox.environment.withhold({"jobs": ["${LATER}"]})
    with pytest.raises(UnsupportedModelError, match="False"):
        inspect(path, allow_code=True)
