"""A rollout half way is exported as it is now."""

import json
import time
from typing import Any

import pytest

from headrace.testing import models
from tests.e2e.cli.conftest import PORTS, MakeShell, Shell

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

_STEPS = "[{weight: 30, until: approval}]"
_WITHIN_S = 60.0


def _routes(shell: Shell) -> list[dict[str, Any]]:
    done = shell.run("export", "gateway-api", "--from-system", "--no-grpc", "-o", "routes.json")
    assert done.returncode == 0, done.stderr
    items: list[dict[str, Any]] = json.loads((shell.folder / "routes.json").read_text())["items"]
    return items


def _split(shell: Shell) -> dict[str, int]:
    route = next(one for one in _routes(shell) if one["metadata"]["name"] == "headrace-digits")
    refs = route["spec"]["rules"][-1]["backendRefs"]
    return {ref["name"]: ref["weight"] for ref in refs}


@pytest.mark.long
def test_a_canary_is_exported_with_the_weights_of_this_moment(make_shell: MakeShell) -> None:
    shell = make_shell()
    (shell.folder / "second.onnx").write_bytes(models.mlp(seed=7))
    plan = f"{{strategy: canary, steps: {_STEPS}}}"
    document = "endpoints: [{name: digits, model: ./%s, access: public, rollout: %s}]"
    spec = shell.folder / "headrace.yaml"
    spec.write_text(document % ("mlp.onnx", plan))
    done = shell.run("up", "--detach", *PORTS)
    assert done.returncode == 0, done.stderr
    before = _split(shell)

    spec.write_text(document % ("second.onnx", plan))
    done = shell.run("apply", "-f", "headrace.yaml")
    assert done.returncode == 0, done.stderr
    until = time.monotonic() + _WITHIN_S
    while (now := _split(shell)) == before and time.monotonic() < until:
        time.sleep(0.2)

    assert before == {"headrace-digits-1": 100}
    assert now == {"headrace-digits-1": 70, "headrace-digits-2": 30}
