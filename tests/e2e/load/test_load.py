"""`headrace load` against a real replica, as a user runs it."""

import json
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.core import example_inputs
from headrace.load import LoadPlan, TargetProbe, open_target, run_load
from headrace.load.target import json_message
from headrace.testing import models
from tests.e2e.cli.conftest import Shell
from tests.e2e.load.servers import V2, serving
from tests.e2e.replicas import Replica, running
from tests.ports import free_port

pytestmark = pytest.mark.e2e
SHORT = ("--seconds", "1", "--warm-up", "0.2")


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    folder = tmp_path_factory.mktemp("load")
    model = folder / "mlp.onnx"
    model.write_bytes(models.mlp())
    with running(folder, model) as found:
        yield found


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def test_the_only_model_is_found_and_the_document_is_whole(shell: Shell, replica: Replica) -> None:
    done = shell.run(
        "load", replica.url, "--rate", "200", *SHORT, "--json", "--slo", "p50=5s,error=50%"
    )

    found = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert found["model"] == "m"
    assert found["rate_per_s"] == 200
    assert found["seconds"] == 1
    assert found["errors"] == 0
    assert found["requests"] > 120
    assert found["achieved_per_s"] > 100
    assert 0 < found["latency_s"]["p50"] <= found["latency_s"]["p99"] < 5
    low, high = found["latency_ci_s"]["p50"]
    assert low <= found["latency_s"]["p50"] <= high
    assert found["latency_ci_s"]["p99.9"] is None
    assert found["lag_s"]["p50"] <= found["lag_s"]["p99"] <= found["lag_s"]["max"]
    assert [each["verdict"] for each in found["slo"]] == ["met", "met"]
    assert "sending 200 requests/s (poisson) for 0.2 + 1 s to m at 127.0.0.1" in done.stderr
    assert "input FP32 [1, 32], made up" in done.stderr


@pytest.mark.long
@pytest.mark.parametrize("flags", [("--binary", "--rows", "3"), ("--arrivals", "constant")])
def test_full_urls_and_other_forms(shell: Shell, replica: Replica, flags: tuple[str, ...]) -> None:
    url = f"{replica.url}/v2/models/m/versions/1/infer"

    done = shell.run("load", url, "-r", "100", *SHORT, *flags)

    assert done.returncode == 0, done.stderr
    assert "0 (0 %, 0 % to " in done.stdout


def test_a_missed_objective_is_an_exit_status(shell: Shell, replica: Replica) -> None:
    done = shell.run("load", replica.url, "-r", "100", *SHORT, "--slo", "p50=1us")

    assert done.returncode == 1
    assert "MISSED" in done.stdout


@pytest.mark.long
def test_too_few_requests_are_not_enough_evidence(shell: Shell, replica: Replica) -> None:
    done = shell.run("load", replica.url, "-r", "20", *SHORT, "--slo", "p99=5s")

    assert done.returncode == 3
    assert "not enough evidence" in done.stdout
    assert "needs about" in done.stdout


@pytest.mark.long
def test_several_rates_end_where_an_objective_is_missed(shell: Shell, replica: Replica) -> None:
    picture = shell.folder / "steps.html"

    done = shell.run(
        "load", replica.url, "-r", "50,100", *SHORT, "--slo", "p50=1us", "--plot", picture
    )

    assert done.returncode == 1
    assert done.stdout.count("MISSED") == 1
    assert "none of these rates met all objectives" not in done.stderr
    assert "<svg" in picture.read_text()


@pytest.mark.long
def test_a_terminal_sees_how_it_goes(shell: Shell, replica: Replica) -> None:
    status, shown = shell.on_terminal(
        "load", replica.url, "-r", "200", "--seconds", "2", "--warm-up", "0"
    )

    assert status == 0
    assert " sent, " in shown
    assert " in flight, p50 " in shown
    assert " s left" in shown


def test_ctrl_c_reports_what_was_measured(shell: Shell, replica: Replica) -> None:
    process = shell.start(
        "load", replica.url, "-r", "200", "--seconds", "60", "--warm-up", "0", "--json"
    )
    assert process.stderr is not None
    assert "sending" in process.stderr.readline()
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=20)

    found = json.loads(out)
    assert process.returncode == 130
    assert found["interrupted"] is True
    assert 0.2 < found["seconds"] < 10
    assert found["requests"] == pytest.approx(200 * found["seconds"], rel=0.5)
    assert found["errors"] == 0


@pytest.mark.long
def test_ctrl_c_twice_waits_for_nobody(shell: Shell) -> None:
    with serving(V2(answers=1)) as server:
        process = shell.start(
            "load", server.url, "-m", "m", "-r", "50", "--warm-up", "0", "--timeout-s", "60"
        )
        assert process.stderr is not None
        assert "sending" in process.stderr.readline()
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)

    assert process.returncode == 130


@pytest.mark.long
def test_a_server_without_one_good_answer_is_an_exit_status(shell: Shell) -> None:
    with serving(V2(answers=1)) as server:
        done = shell.run(
            "load", server.url, "-m", "m", "-r", "20", *SHORT, "--timeout-s", "0.3", "--json"
        )

    found = json.loads(done.stdout)
    assert done.returncode == 1
    assert found["errors_by_kind"] == {"timeout": found["requests"]}
    assert found["latency_s"]["p50"] is None
    assert found["achieved_per_s"] == 0


@pytest.mark.long
@pytest.mark.parametrize(
    ("more", "said", "status"),
    [
        (("--model", "nobody"), "'nobody' is not found", 1),
        (("--version", "7"), "not found", 1),
        (("--input", "missing.json"), "no file 'missing.json'", 2),
        (("--input", "wrong.json"), "x", 1),
    ],
)
def test_what_the_server_or_the_model_does_not_take_ends_before_the_load(
    shell: Shell, replica: Replica, more: tuple[str, ...], said: str, status: int
) -> None:
    (shell.folder / "wrong.json").write_text('{"x": [[1, 2]]}')

    done = shell.run("load", replica.url, "-r", "20", *SHORT, *more)

    assert done.returncode == status
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_server_that_is_not_there_is_one_error(shell: Shell) -> None:
    done = shell.run("load", f"http://127.0.0.1:{free_port()}", "-r", "20", "-m", "m", *SHORT)

    assert done.returncode == 3
    assert "cannot connect to http://127.0.0.1" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_server_that_lists_no_models_asks_for_a_name(shell: Shell) -> None:
    with serving(V2(answers=0)) as server:
        done = shell.run("load", server.url, "-r", "20", *SHORT)

    assert done.returncode == 1
    assert "name one with --model" in done.stderr


@pytest.mark.long
def test_a_unix_socket_is_a_server_too() -> None:
    with tempfile.TemporaryDirectory(prefix="hr-") as directory:
        folder = Path(directory)
        (folder / "mlp.onnx").write_bytes(models.mlp())
        sock = folder / "m.sock"
        with running(folder, folder / "mlp.onnx", uds=str(sock)):
            target = open_target(f"unix:{sock}", model="m")
            with TargetProbe(target) as probe:
                inputs = example_inputs(probe.signature())
            ready = target.with_messages([json_message("m", "", inputs)])
            result = run_load(LoadPlan(rate_per_s=100, seconds=1, warm_up_s=0), ready)

    assert result.failed == 0
    assert result.requests > 50
