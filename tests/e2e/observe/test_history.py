"""The history of a system that runs: what callers got, over the starts of gateway and control."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from headrace.testing import models
from tests.e2e.cli.conftest import Shell
from tests.e2e.control.system import System
from tests.e2e.observe.terminal import terminal

pytestmark = pytest.mark.e2e

_HISTORY = "/api/v1/history?endpoint=fraud&since_s=900&points=900"
_WRONG: dict[str, Any] = {"inputs": []}


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("history")
    path = folder / "mlp.onnx"
    path.write_bytes(models.mlp())
    system = System(folder / "home")
    system.start(
        {"name": "fraud", "model": str(path)},
        {"name": "idle", "model": str(path)},
        first_request=False,
    )
    system.wait_ready()
    yield system
    system.close()


@pytest.mark.long
def test_top_shows_it_live_in_a_terminal_and_once_elsewhere(system: System) -> None:
    shell = Shell(system.home.parent)
    infer(system, good=5)
    with terminal("top", "--sort", "requests", env=shell.environment) as seen:
        seen.wait_for("q quit")
        seen.wait_for("fraud")
        seen.type("/idl\r")
        seen.wait_for("1 endpoint, page 1 of 1, with 'idl'")
        seen.type("q")
        status = seen.ended()
    once = shell.run("top")
    document = json.loads(shell.run("top", "fraud", "--json").stdout)

    assert status == 0
    assert [line.split()[0] for line in once.stdout.splitlines()] == ["endpoint", "fraud", "idle"]
    assert [row["name"] for row in document["endpoints"]] == ["fraud"]


def test_the_system_is_drawn_as_it_is(system: System) -> None:
    shell = Shell(system.home.parent)
    text = shell.run("diagram", "--search", "fraud").stdout
    drawn = shell.run("diagram", "-o", "system.svg")
    page = (shell.folder / "system.svg").read_text()

    assert "flowchart LR" in text
    assert f"HTTP, gRPC {urlsplit(system.where().http_url).netloc}" in text
    assert "version 1<br>fraud:1<br>1 of 1 replica ready" in text
    assert drawn.returncode == 0
    assert ">idle<" in page


@pytest.mark.long
def test_requests_are_in_the_history_over_the_starts_of_gateway_and_control(
    system: System,
) -> None:
    asked_until_counted(system, good=30, wrong=10)
    found = {row["name"]: row for row in system.get("/api/v1/overview")["endpoints"]}
    points = system.get(_HISTORY)["points"]

    assert (found["fraud"]["state"], found["idle"]["state"]) == ("ok", "idle")
    assert found["fraud"]["versions"] == ["1"]
    assert found["fraud"]["replicas_ready"] == 1
    assert 0 < found["fraud"]["p50_s"] <= found["fraud"]["p99_s"] < 5
    assert found["idle"]["p50_s"] is None
    assert sum(point["rejections_per_s"] or 0 for point in points) > 0

    before = total(system)
    system.gateway().kill()
    system.wait_for(lambda status: status["gateway"]["restarts"] == 1 and status["ready"])
    asked_until_counted(system, good=20)
    assert total(system) >= before + 20

    before = total(system)
    assert system.end_control() == 0
    system.start()
    system.wait_ready()
    asked_until_counted(system, good=15)
    assert total(system) >= before + 15


@pytest.mark.long
def test_batches_and_replicas_are_in_the_history_over_a_start_of_control(system: System) -> None:
    rows = [[0.1] * 32] * 5
    five = {"inputs": [{"name": "input", "datatype": "FP32", "shape": [5, 32], "data": rows}]}
    url = "/api/v1/history?endpoint=idle&since_s=900&points=900"
    statuses = {system.infer("idle", five)[0] for _ in range(40)}

    def of(name: str) -> list[float]:
        return [one[name] for one in system.get(url)["points"] if one[name] is not None]

    def fives_alone() -> bool:
        # A look that has the start's own request of one row, too, has fewer rows on average.
        assert system.infer("idle", five)[0] == 200
        return 5.0 in of("batch_rows")

    assert statuses == {200}
    wait(fives_alone)
    ready = of("replicas_ready")
    assert max(of("batch_rows")) == 5.0
    assert all(0 <= wait_s < 1 for wait_s in of("queue_s"))
    assert (max(ready), ready[-1]) == pytest.approx((1.0, 1.0))
    assert max(of("in_flight")) > 0

    assert system.end_control() == 0
    system.start()
    system.wait_ready()
    wait(lambda: of("replicas_ready")[-1] == pytest.approx(1.0))
    # The looks may be put together otherwise, so that one has a request of one row in it, too.
    assert max(of("batch_rows")) > 4.5


def infer(system: System, *, good: int, wrong: int = 0) -> None:
    statuses = [system.infer("fraud")[0] for _ in range(good)]
    statuses += [system.infer("fraud", _WRONG)[0] for _ in range(wrong)]

    assert statuses == [200] * good + [400] * wrong


def asked_until_counted(system: System, *, good: int, wrong: int = 0) -> None:
    """Ask so often, and again until the history grew by as much.

    A look that comes late, as after a start, is of more than a step: its rate times a step is less
    than what was counted.
    """
    before = total(system)

    def is_counted() -> bool:
        if total(system) >= before + good + wrong:
            return True
        infer(system, good=good, wrong=wrong)
        return False

    wait(is_counted, pause_s=1.0)


def total(system: System) -> int:
    """The requests of all steps that are over: the rate of the newest is of a part of its step."""
    now = time.time()  # noqa: TID251  # steps begin by the wall clock
    series = system.get(_HISTORY)
    over = [point for point in series["points"] if point["at"] + series["step_s"] <= now]
    rates = [float(point["requests_per_s"] or 0) for point in over]
    return round(sum(rates) * float(series["step_s"]))


def wait(condition: Callable[[], bool], *, pause_s: float = 0.1) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(pause_s)
