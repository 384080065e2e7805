"""Models as people have them are served by one command, and answer as their frameworks do.

Prints a table of seconds to the first answer, if the tests run in one process.
"""

import json
import sys
import time
from collections.abc import Iterator
from typing import Final

import numpy as np
import pytest

from headrace.client import Client
from headrace.core import Array
from tests.common_models import MODELS, OF_PYTORCH, OF_TENSORFLOW
from tests.e2e.cli.conftest import PORTS, Shell

pytestmark = [pytest.mark.e2e, pytest.mark.long]

Table = list[tuple[str, str, str, str]]
_MARKS: Final = {
    **dict.fromkeys(OF_PYTORCH, pytest.mark.torch),
    **dict.fromkeys(OF_TENSORFLOW, pytest.mark.tensorflow),
}


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[Table]:
    """Rows that are printed after the last test."""
    rows: Table = [("model", "command", "seconds to the first answer", "largest difference")]
    yield rows
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        sys.stdout.write("\n".join(["", *(f"| {' | '.join(row)} |" for row in rows), ""]))


@pytest.mark.parametrize(
    "title", [pytest.param(title, marks=_MARKS.get(title, ())) for title in MODELS]
)
def test_a_model_is_served_by_one_command_and_answers_as_its_framework(
    shell: Shell, table: Table, title: str
) -> None:
    model = MODELS[title](shell.folder)
    target = str(model.target)
    if model.pushed is not None:
        assert shell.run("models", "push", "forest", model.pushed).returncode == 0
    name = ("--name", model.endpoint) if model.endpoint == "model" else ()

    began = time.monotonic()
    done = shell.run("up", target, *name, *model.flags, "--detach", "--json", *PORTS)
    assert done.returncode == 0, done.stderr
    with Client(json.loads(done.stdout)["http_url"]) as client:
        outputs = client.infer(model.endpoint, model.inputs).outputs
    seconds = time.monotonic() - began
    shell.run("down", "--drain-s", "1")

    differences = [0.0]
    for output, expected in model.expected.items():
        got = outputs[output]
        assert got.shape == expected.shape
        if model.tolerance == 0.0:
            assert np.array_equal(got, expected), output
        else:
            differences.append(difference(got, expected))
    assert max(differences) <= model.tolerance
    command = f"headrace up {target.rpartition('/')[2]} {' '.join(model.flags)}".strip()
    table.append((title, f"`{command}`", f"{seconds:.1f}", f"{max(differences):.0e}"))


def difference(got: Array, expected: Array) -> float:
    """Return the largest difference, relative to 1 or the value."""
    scale = np.maximum(np.abs(expected), 1.0)
    return float(np.max(np.abs(got - expected) / scale))
