"""The commands on a real system."""

import io
import json
import os
import shlex
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from onnx import TensorProto

from headrace.core import Array
from headrace.core.processes import start_ticks
from headrace.testing import models
from tests.e2e.cli.conftest import PORTS, MakeShell, Shell

pytestmark = pytest.mark.e2e

ROWS = np.random.default_rng(3).random((4, 32)).astype(np.float32)


def status(shell: Shell) -> dict[str, object]:
    document = json.loads(shell.run("status", "--json").stdout)
    assert isinstance(document, dict)
    return document


def npy(array: Array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def csv() -> bytes:
    return "\n".join(",".join(f"{value:.6f}" for value in row) for row in ROWS).encode()


def test_status_shows_everything_ready(up: Shell) -> None:
    table = up.run("status")
    document = status(up)

    assert table.returncode == 0
    assert "digits    yes    1        digits:1  100%    1/1" in table.stdout
    assert document["ready"] is True
    assert document["running"] is True


@pytest.mark.parametrize(
    "data",
    [
        json.dumps(ROWS.tolist()).encode(),
        pytest.param(json.dumps({"instances": ROWS.tolist()}).encode(), marks=pytest.mark.long),
        pytest.param(
            json.dumps(
                {"inputs": [{"name": "input", "shape": [4, 32], "data": ROWS.ravel().tolist()}]}
            ).encode(),
            marks=pytest.mark.long,
        ),
        npy(ROWS),
        pytest.param(npy(ROWS.astype(np.float64)), marks=pytest.mark.long),
        pytest.param(csv(), marks=pytest.mark.long),
    ],
    ids=["rows", "v1", "v2", "npy", "float64", "csv"],
)
def test_every_form_of_input_gets_the_same_answer(up: Shell, data: bytes) -> None:
    (up.folder / "input").write_bytes(data)

    from_file = up.run("infer", "digits", "-i", "input", "-o", "json")
    from_stdin = up.run("infer", "digits", "-i", "-", "-o", "json", stdin=data)

    assert from_file.returncode == 0, from_file.stderr
    assert from_file.stdout == from_stdin.stdout
    output = json.loads(from_file.stdout)["outputs"][0]
    assert output["shape"] == [4, 2]
    np.testing.assert_allclose(np.reshape(output["data"], (4, 2)).sum(axis=1), 1, rtol=1e-5)


def test_without_input_made_up_rows_are_shown_in_a_table(up: Shell) -> None:
    done = up.run("infer", "digits", "--rows", "2")

    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 3
    assert done.stdout.startswith("row  prob")
    assert done.stderr == "answered by digits version 1\n"


@pytest.mark.long
def test_only_the_first_rows_are_sent_and_long_answers_are_cut(up: Shell) -> None:
    two = up.run("infer", "digits", "-i", "-", "-n", "2", stdin=csv())
    many = up.run("infer", "digits", "-n", "100")  # the endpoint takes 32 a request
    missing = up.run("infer", "digits", "-i", "nowhere.csv")

    assert len(two.stdout.splitlines()) == 3
    assert len(many.stdout.splitlines()) == 21
    assert "and 80 more rows; `-o json` prints all" in many.stderr
    assert missing.returncode == 2


@pytest.mark.long
def test_grpc_is_one_url_away(up: Shell) -> None:
    addresses = status(up)["addresses"]
    assert isinstance(addresses, dict)

    done = up.run("infer", "digits", "--url", f"grpc://{addresses['grpc']}", "--version", "1")

    assert done.returncode == 0, done.stderr


def test_an_unknown_endpoint_is_answered_with_those_there_are(up: Shell) -> None:
    done = up.run("infer", "nobody")

    assert done.returncode == 1
    assert done.stderr == "headrace: no endpoint 'nobody'; there are: digits, second\n"


@pytest.mark.long
def test_the_printed_call_works_as_it_stands(up: Shell) -> None:
    line = up.run("up", "--detach").stdout.splitlines()[-1]
    assert line.startswith("curl -s http://127.0.0.1:")

    answer = subprocess.check_output(shlex.split(line))  # our own line

    assert json.loads(answer)["outputs"][0]["shape"] == [1, 2]


@pytest.mark.long
def test_up_where_it_runs_changes_nothing(up: Shell) -> None:
    pid = status(up)["pid"]

    done = up.run("up", "--detach")

    assert done.returncode == 0
    assert f"already running on {up.home} (pid {pid})" in done.stderr
    assert "no changes" in done.stderr


def test_logs_can_be_read_and_followed(up: Shell) -> None:
    last = up.run("logs", "--tail", "3")
    wrong = up.run("logs", "nobody")
    as_json = up.run("logs", "--log-format", "json", "--tail", "1")
    follower = up.start("logs", "--follow", "--tail", "1", "control")
    assert follower.stdout is not None
    first = follower.stdout.readline()
    follower.send_signal(signal.SIGINT)
    follower.communicate(timeout=20)

    assert len(last.stdout.splitlines()) == 3
    assert wrong.returncode == 1
    assert "there is no log of 'nobody'" in wrong.stderr
    assert "source" in json.loads(as_json.stdout)
    assert first.startswith("control")
    assert follower.returncode == 130


@pytest.mark.long
def test_status_can_be_watched(up: Shell) -> None:
    watcher = up.start("status", "--watch")
    assert watcher.stdout is not None
    limit = threading.Timer(60, watcher.kill)
    limit.start()
    shown = any("digits" in line for line in watcher.stdout)
    limit.cancel()
    watcher.send_signal(signal.SIGINT)
    _, err = watcher.communicate(timeout=20)

    assert shown
    assert "Traceback" not in err
    assert watcher.returncode == 130


def test_a_model_in_use_is_not_removed(up: Shell) -> None:
    done = up.run("models", "rm", "digits:1")

    assert done.returncode == 1
    assert "digits:1 is being served" in done.stderr


def test_users_are_added_changed_and_kept_out(up: Shell) -> None:
    added = up.run("users", "add", "ann", "--role", "viewer")
    granted = up.run("users", "grant", "ann", "operator:digits", "admin")
    taken = up.run("users", "revoke", "ann", "viewer", "admin")
    disabled = up.run("users", "disable", "ann")
    enabled = json.loads(up.run("users", "enable", "ann", "--json").stdout)
    odd = up.run("users", "add", "bob", "--role", "king")

    assert added.stderr == "ann: viewer\n"
    assert granted.stderr == "ann: viewer, operator:digits, admin\n"
    assert taken.stderr == "ann: operator:digits\n"
    assert disabled.stderr == "ann: operator:digits; disabled\n"
    assert (enabled["disabled"], enabled["roles"]) == (False, ["operator:digits"])
    assert (odd.returncode, "unknown role 'king'" in odd.stderr) == (1, True)


@pytest.mark.long
def test_a_version_is_pushed_applied_and_asked_for(up: Shell) -> None:
    pushed = json.loads(up.run("models", "push", "third", "mlp.onnx", "--json").stdout)
    spec = up.folder / "more.yaml"
    text = (up.folder / "headrace.yaml").read_text() + "  - {name: third, model: 'third:1'}\n"
    spec.write_text(text)

    applied = up.run("apply", "-f", "more.yaml", "--wait")
    asked = up.run("infer", "third")
    again = json.loads(up.run("apply", "-f", "more.yaml", "--wait", "--json").stdout)
    back = up.run("apply", "-f", "headrace.yaml", "--wait", "--yes")
    gone = up.run("infer", "third")

    assert pushed["version"] == "1"
    assert applied.returncode == 0, applied.stderr
    assert "endpoint 'third' added" in applied.stderr
    assert asked.returncode == 0
    assert again["changes"] == []
    assert again["ready"] is True
    assert "endpoint 'third' removed" in back.stderr
    assert gone.returncode == 1


@pytest.mark.long
def test_apply_that_cannot_be_changes_nothing(up: Shell) -> None:
    (up.folder / "bad.yaml").write_text(
        "version: 1\nendpoints: [{name: digits, model: ./bad.onnx}]\n"
    )

    done = up.run("apply", "-f", "bad.yaml", "--wait", "--yes")

    assert done.returncode == 1
    assert "bad.onnx" in done.stderr
    assert "Traceback" not in done.stderr
    assert status(up)["ready"] is True


def test_a_broken_pipe_is_no_error(up: Shell) -> None:
    command = f"{shlex.quote(str(Path(up.run('version').args[0])))} logs --tail 50 | head -1"

    done = subprocess.run(  # noqa: S602  # our own command
        command, shell=True, capture_output=True, text=True, env=up.environment, check=False
    )

    assert "Error" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.long
def test_up_prints_addresses_as_json(shell: Shell) -> None:
    done = shell.run("up", "mlp.onnx", "--detach", "--json", "--name", "x", *PORTS)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["http_url"].startswith("http://127.0.0.1:")
    assert shell.run("infer", "x").returncode == 0

    stopped = shell.run("down")

    assert (stopped.returncode, stopped.stderr) == (0, "stopped\n")
    assert shell.run("status").returncode == 3
    assert shell.run("infer", "x").returncode == 3
    again = shell.run("down")
    assert again.returncode == 0
    assert "no system runs" in again.stderr


@pytest.mark.long
def test_up_goes_on_with_what_ran_before(shell: Shell) -> None:
    assert shell.run("up", "mlp.onnx", "--detach", *PORTS).returncode == 0
    shell.run("down")

    done = shell.run("up", "--detach", *PORTS)

    assert done.returncode == 0, done.stderr
    assert "1 of 1 endpoints ready" in done.stdout


@pytest.mark.long
def test_a_large_input_is_shown_as_a_short_command(shell: Shell) -> None:
    from headrace.testing import models  # noqa: PLC0415  # only this test needs it

    (shell.folder / "image.onnx").write_bytes(models.image(size=32))

    done = shell.run("up", "image.onnx", "--detach", *PORTS)

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"headrace infer image --home {shell.home}"


def test_in_the_foreground_addresses_come_first_and_ctrl_c_stops_all(shell: Shell) -> None:
    running = shell.start("up", "mlp.onnx", *PORTS)
    assert running.stdout is not None
    lines = [running.stdout.readline() for _ in range(11)]
    asked = shell.run("infer", "mlp")
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)

    assert lines[0] == "up: 1 of 1 endpoints ready\n"
    assert "stop with     Ctrl-C\n" in lines
    assert lines[-1].startswith("curl -s ")
    assert asked.returncode == 0
    assert running.returncode == 0
    assert "control " in err
    assert "Traceback" not in err
    assert shell.run("status").returncode == 3


@pytest.mark.long
def test_down_ends_what_a_killed_control_plane_left(shell: Shell) -> None:
    assert shell.run("up", "mlp.onnx", "--detach", *PORTS).returncode == 0
    document = status(shell)
    pids = [int(str(document["pid"]))]
    gateway = document["gateway"]
    assert isinstance(gateway, dict)
    os.kill(pids[0], signal.SIGKILL)

    asked = shell.run("infer", "mlp")
    stopped = shell.run("down")

    assert asked.returncode == 0, "traffic flows without the control plane"
    assert stopped.returncode == 0
    assert stopped.stderr == "stopped 2 processes without a control plane\n"
    assert start_ticks(gateway["pid"]) is None


@pytest.mark.long
def test_down_does_not_wait_for_a_gateway_that_hangs(shell: Shell) -> None:
    assert shell.run("up", "mlp.onnx", "--detach", *PORTS).returncode == 0
    document = status(shell)
    gateway = document["gateway"]
    assert isinstance(gateway, dict)
    os.kill(int(str(document["pid"])), signal.SIGKILL)
    os.kill(gateway["pid"], signal.SIGSTOP)

    stopped = shell.run("down", "--drain-s", "1")

    assert stopped.returncode == 0, stopped.stderr
    assert start_ticks(gateway["pid"]) is None


@pytest.mark.parametrize(
    "where",
    [[], pytest.param(["--detach"], marks=pytest.mark.long)],
    ids=["foreground", "detached"],
)
def test_a_model_that_is_none_ends_up_with_the_reason(shell: Shell, where: list[str]) -> None:
    done = shell.run("up", "bad.onnx", *where, *PORTS)

    assert done.returncode == 1
    assert "bad.onnx" in done.stderr
    assert "Traceback" not in done.stderr
    assert "no system runs" in shell.run("down").stderr


def test_a_port_in_use_is_named_with_its_flag(shell: Shell) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        flags = [*PORTS]
        flags[1] = port

        done = shell.run("up", "mlp.onnx", "--detach", *flags)

    assert done.returncode == 1
    assert f"port {port} on 127.0.0.1" in done.stderr
    assert "--http-port" in done.stderr


@pytest.mark.long
def test_ports_come_from_the_environment_unless_a_flag_says_otherwise(
    make_shell: MakeShell,
) -> None:
    shell = make_shell()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    shell.environment["HEADRACE_HTTP_PORT"] = str(port)
    shell.environment["HEADRACE_GRPC_PORT"] = "1"

    done = shell.run("up", "mlp.onnx", "--detach", "--json", *PORTS[2:])

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["http_url"] == f"http://127.0.0.1:{port}"


def repository(folder: Path) -> None:
    """Triton's layout: models with and without a batch axis, and two that have trouble."""
    fp32 = ("x", TensorProto.FLOAT, [None])
    models_by_path = {
        "batched/1/model.onnx": models.mlp(),
        "flat/1/model.onnx": models.build([("Neg", ["x"], ["y"], {})], [fp32], [("y", *fp32[1:])]),
        "flat/3/model.onnx": models.build([("Abs", ["x"], ["y"], {})], [fp32], [("y", *fp32[1:])]),
        "picture/1/model.onnx": models.image(size=8),
        "numbers/1/model.onnx": models.build(  # as Triton's example `simple_string`
            [("Cast", ["x"], ["y"], {"to": TensorProto.INT32})],
            [("x", TensorProto.STRING, [None])],
            [("y", TensorProto.INT32, [None])],
        ),
        "broken/1/model.onnx": b"no model",
    }
    for path, content in models_by_path.items():
        (folder / path).parent.mkdir(parents=True)
        (folder / path).write_bytes(content)
    configs = {
        "flat": "max_batch_size: 0\nversion_policy: { all {} }",
        "numbers": "max_batch_size: 0",
        "picture": 'max_batch_size: 4\ninput [ { name: "image" format: FORMAT_NCHW } ]',
    }
    for name, config in configs.items():
        (folder / name / "config.pbtxt").write_text(config)


def test_a_triton_repository_serves_what_can_be_served(shell: Shell) -> None:
    repository(shell.folder / "repository")
    up = shell.run("up", "repository", "--detach", *PORTS)
    document = json.loads(shell.run("status", "--json").stdout)
    endpoints = {endpoint["name"]: endpoint for endpoint in document["endpoints"]}
    url = document["addresses"]["http"]

    assert up.returncode == 3
    assert "up: 4 of 5 endpoints ready" in up.stdout
    assert "broken: version 1: " in up.stderr
    assert "numbers: the first request, with synthetic inputs, got HTTP status 500" in up.stderr
    assert endpoints["numbers"]["ready"]
    assert endpoints["broken"]["failed"]
    with httpx.Client(base_url=url) as client:

        def infer(model: str, datatype: str, data: list[object]) -> object:
            tensor = {"name": "x", "datatype": datatype, "shape": [len(data)], "data": data}
            answer = client.post(f"/v2/models/{model}/infer", json={"inputs": [tensor]})
            return answer.json()["outputs"][0]["data"] if answer.is_success else answer.text

        config = {
            name: client.get(f"/v2/models/{name}/config").json() for name in ("flat", "picture")
        }
        assert infer("flat", "FP32", [-1.0] * 70) == [1.0] * 70
        assert infer("flat", "FP32", []) == []
        assert infer("flat/versions/1", "FP32", [-1.0, 2.0]) == [1.0, -2.0]
        assert infer("numbers", "BYTES", ["7", "8"]) == [7, 8]
        assert client.post("/v2/models/broken/infer", json={"inputs": []}).status_code == 503
    assert (config["flat"]["max_batch_size"], config["flat"]["input"][0]["dims"]) == (0, [-1])
    assert "dynamic_batching" not in config["flat"]
    assert config["picture"]["max_batch_size"] == 4
    assert config["picture"]["input"][0]["format"] == "FORMAT_NCHW"


def test_scale_changes_the_replicas_of_one_endpoint_and_nothing_else(up: Shell) -> None:
    done = json.loads(up.run("scale", "digits", "--replicas", "2", "--json").stdout)
    missing = up.run("scale", "nobody", "--replicas", "2")
    back = json.loads(up.run("apply", "-f", "headrace.yaml", "--wait", "--json").stdout)

    assert [("digits" in change, "second" in change) for change in done["changes"]] == [
        (True, False)
    ]
    assert missing.returncode == 1
    assert "no endpoint 'nobody'" in missing.stderr
    assert len(back["changes"]) == 1


def test_a_model_adds_an_endpoint_and_a_spec_removes_only_what_is_confirmed(
    make_shell: MakeShell,
) -> None:
    shell = make_shell()
    (shell.folder / "two.onnx").write_bytes(models.mlp(seed=2))
    (shell.folder / "spec.yaml").write_text("endpoints: [{name: two, model: ./two.onnx}]\n")
    first = shell.run("up", "mlp.onnx", "--detach", *PORTS)
    second = shell.run("up", "two.onnx", "--detach", *PORTS)
    names = [endpoint["name"] for endpoint in status_of(shell)["endpoints"]]
    refused = [shell.run(*command) for command in _REMOVING]
    kept = [endpoint["name"] for endpoint in status_of(shell)["endpoints"]]
    removed = shell.run("apply", "-f", "spec.yaml", "--yes")
    url = status_of(shell)["addresses"]["http"]
    load = shell.run("load", url, "--rate", "50", "--warm-up", "0.2", "--seconds", "1", "--json")

    assert (first.returncode, second.returncode) == (0, 0), second.stderr
    assert "endpoint 'two' added" in second.stderr
    assert "/v2/models/two/infer" in second.stdout
    assert names == kept == ["mlp", "two"]
    for done in refused:
        assert done.returncode == 1
        assert "the spec removes endpoint 'mlp', which it does not contain" in done.stderr
        assert "--yes" in done.stderr
    assert removed.returncode == 0
    assert "endpoint 'mlp' removed" in removed.stderr
    assert json.loads(load.stdout)["model"] == "two", load.stderr


_REMOVING = (("apply", "-f", "spec.yaml"), ("up", "spec.yaml"))


@pytest.mark.long
def test_the_next_start_adopts_what_sigterm_left_and_uses_the_stored_flags(
    make_shell: MakeShell,
) -> None:
    shell = make_shell()
    (shell.folder / "two.onnx").write_bytes(models.mlp(seed=2))
    shell.run("up", "mlp.onnx", "--detach", "--gateway-lost-after-s", "60", *PORTS)
    before = status_of(shell)
    os.kill(before["pid"], signal.SIGTERM)
    wait_until(lambda: "serve on" in shell.run("status").stderr)
    between = shell.run("status")
    answered = shell.run("infer", "mlp", "--rows", "1")
    refused = shell.run("up", "other.yaml")
    again = shell.run("up", "two.onnx", "--detach")
    after = status_of(shell)
    other = shell.run("up", "two.onnx", "--detach", "--http-port", "1")

    assert "its gateway and replicas serve on" in between.stderr + between.stdout
    assert answered.returncode == 0
    assert refused.returncode == 2
    assert again.returncode == 0, again.stderr
    assert "stored flags of earlier starts: " in again.stderr
    assert "--gateway-lost-after-s 60.0" in after["flags"]
    assert after["gateway"]["pid"] == before["gateway"]["pid"]
    assert after["addresses"] == before["addresses"]
    assert [endpoint["name"] for endpoint in after["endpoints"]] == ["mlp", "two"]
    assert other.returncode == 1
    assert f"--http-port: the control plane that runs (pid {after['pid']})" in other.stderr


@pytest.mark.long
def test_a_detached_start_with_remote_gateways_names_the_command_of_the_first(
    shell: Shell,
) -> None:
    shell.run("certs", "dev", "--out", "pki", "--client", "gw-1")
    upstream = "upstream: {url: 'http://127.0.0.1:9', health_path: null}"
    (shell.folder / "spec.yaml").write_text(f"endpoints: [{{name: m, {upstream}}}]\n")
    files = ("--agents-tls-cert", "server.pem", "--agents-tls-key", "server-key.pem")
    paths = [text if text.startswith("--") else f"pki/{text}" for text in files]
    ports = ("--agents-port", "0", "--agents-limits-port", "0", "--agents-tls-client-ca")
    done = shell.run(
        *("up", "-f", "spec.yaml", "--detach", "--gateway", "remote", "--wait-s", "60"),
        *(*paths, *ports, "pki/ca.pem", *PORTS),
    )
    after = status_of(shell)

    assert done.returncode == 0, done.stderr
    assert "no gateway is connected, and endpoints become ready with the first" in done.stderr
    assert "headrace gateway --control https://" in done.stderr
    assert after["endpoints"][0]["ready"] is False


def status_of(shell: Shell) -> dict[str, Any]:
    document: dict[str, Any] = status(shell)
    return document


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)
