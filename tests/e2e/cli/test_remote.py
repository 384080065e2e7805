"""A control plane elsewhere: commands of another machine's user, over the management API only."""

import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from headrace.control.api.events import MAX_WATCHERS
from headrace.testing import models
from tests import tabular_models
from tests.e2e.cli.conftest import PORTS, MakeShell, Shell

if TYPE_CHECKING:
    import subprocess

pytestmark = pytest.mark.e2e

EXAMPLE = '{"name": "m", "model": "m:1"}'


@dataclass(slots=True)
class Laptop:
    """A user whose own home is empty; `url` is the management API elsewhere."""

    shell: Shell
    url: str

    def run(self, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
        return self.shell.run(*arguments)

    def json(self, *arguments: str | Path) -> dict[str, object]:
        done = self.run(*arguments, "--json")
        assert done.stdout, done.stderr
        document = json.loads(done.stdout)
        assert isinstance(document, dict)
        return document

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.shell.environment['HEADRACE_TOKEN']}"}

    def spec(self, *endpoints: str) -> Path:
        lines = "".join(f"  - {endpoint}\n" for endpoint in endpoints)
        path = self.shell.folder / "headrace.yaml"
        path.write_text(f"version: 1\nendpoints:\n{lines}" if endpoints else "version: 1\n")
        return path


@pytest.fixture(scope="module")
def laptop(make_shell: MakeShell) -> Iterator[Laptop]:
    """Another user of a system that serves nothing yet."""
    server, user = make_shell(), make_shell()
    (server.folder / "headrace.yaml").write_text("version: 1\nendpoints: []\n")
    done = server.run("up", "--detach", "--allowed-host", "Models.Example", *PORTS)
    assert done.returncode == 0, done.stderr
    control = json.loads((server.home / "run" / "control.json").read_bytes())
    user.environment["HEADRACE_SERVER"] = control["admin_url"]
    user.environment["HEADRACE_TOKEN"] = server.run("token", "show").stdout.strip()
    (user.folder / "other.onnx").write_bytes(models.mlp(seed=7))
    (user.folder / "third.onnx").write_bytes(models.mlp(seed=8))
    yield Laptop(user, control["admin_url"])
    assert not user.home.exists()  # nothing of it was needed, nor made


@pytest.fixture(scope="module")
def served(laptop: Laptop) -> Laptop:
    """The endpoint `m` serves the laptop's own file, as version 1."""
    laptop.spec("{name: m, model: ./mlp.onnx}")
    done = laptop.run("apply", "-f", "headrace.yaml", "--wait")
    assert done.returncode == 0, done.stderr
    assert "mlp.onnx is m:1 on http://127.0.0.1:" in done.stderr
    return laptop


@pytest.mark.long
def test_what_was_converted_here_is_stored_there_with_its_lineage(laptop: Laptop) -> None:
    tabular_models.library("onnxmltools", "convert")
    path = tabular_models.lightgbm(laptop.shell.folder, "regression").path
    pushed = laptop.json("models", "push", "trees", path, "--convert", "onnx")
    shown = laptop.json("models", "show", "trees:1")
    kept = shown["metadata"]

    assert shown == pushed
    assert isinstance(kept, dict)
    assert (kept["converted_runtime"], kept["converted_file"]) == ("lightgbm", "regression.txt")
    assert str(kept["converted_from"]).startswith("sha256:")


def test_models_of_this_machine_are_uploaded_and_served(served: Laptop) -> None:
    status = served.run("status")
    asked = served.run("infer", "m", "--rows", "2")
    unknown = served.run("infer", "nobody")
    logs = served.run("logs", "--tail", "5")
    again = served.json("apply", "-f", "headrace.yaml", "--wait")

    assert status.returncode == 0
    assert "m         yes    1        m:1" in status.stdout
    assert asked.returncode == 0, asked.stderr
    assert "there are: m" in unknown.stderr
    assert len(logs.stdout.splitlines()) == 5
    assert again["changes"] == []


@pytest.mark.long
def test_who_applied_stands_in_the_history_and_the_events(served: Laptop) -> None:
    history = served.run("history", "m")
    entries = served.json("history", "m")["generations"]
    events = [json.loads(line) for line in served.run("events", "m", "--json").stdout.splitlines()]
    text = served.run("events", "m").stdout

    assert isinstance(entries, list)
    assert entries[-1]["actor"] == "admin"
    assert "m:1" in history.stdout
    assert events[0]["reason"] == "Added"
    assert events[0]["actor"] == entries[-1]["actor"]
    assert "Added" in text


@pytest.mark.long
def test_diff_tells_by_its_exit_status_as_kubectl_does(served: Laptop) -> None:
    same = served.run("diff", "-f", "headrace.yaml")
    (served.shell.folder / "changed.yaml").write_text(
        "version: 1\nendpoints: [{name: m, model: ./mlp.onnx, timeout_s: 5}]\n"
    )
    changed = served.run("diff", "-f", "changed.yaml")
    document = served.json("diff", "-f", "changed.yaml")
    (served.shell.folder / "wrong.yaml").write_text("version: 1\nendpoints: [{nam: m}]\n")
    wrong = served.run("diff", "-f", "wrong.yaml")
    nobody = served.run("diff", "-f", "changed.yaml", "--server", "127.0.0.1:9")

    assert (same.returncode, same.stdout, same.stderr) == (0, "", "no changes\n")
    assert changed.returncode == 1
    assert "+timeout_s: 5" in changed.stdout
    assert "timeout_s 30 becomes 5" in changed.stderr
    assert set(document) == {"changes", "endpoints", "warnings"}
    assert wrong.returncode == 2
    assert nobody.returncode == 3


@pytest.mark.long
def test_models_are_pushed_listed_shown_and_removed_elsewhere(laptop: Laptop) -> None:
    folder = laptop.shell.folder / "python_model"
    folder.mkdir()
    (folder / "model.py").write_text(PYTHON_MODEL)
    file = laptop.json("models", "push", "pushed", "other.onnx", "--source", "git:1")
    same = laptop.json("models", "push", "pushed", "other.onnx")
    code = laptop.run("models", "push", "folder", "python_model", "--runtime", "python")
    directory = laptop.run("models", "push", "folder", "python_model", "--allow-code")
    laptop.run("models", "keygen", "--out", "keys")
    sign = ("models", "sign", "pushed:1", "--key", "keys/model-signing.pem")
    signed = laptop.run(*sign, "--content", "other.onnx")
    verified = laptop.run(
        *("models", "verify", "pushed:1", "--trusted", "keys/model-signing.pub.pem")
    )
    bad = laptop.run("models", "push", "bad", "bad.onnx")
    listed = laptop.run("models", "list")
    shown = laptop.run("models", "show", "pushed")
    exact = laptop.json("models", "show", "pushed:1")
    removed = laptop.run("models", "rm", "pushed:1")
    missing = laptop.run("models", "show", "pushed")
    freed = laptop.run("models", "gc")

    assert (file["version"], same["version"], file["source"]) == ("1", "1", "git:1")
    assert (code.returncode, "allow_code: true" in code.stderr) == (1, True)
    assert directory.returncode == 0, directory.stderr
    assert signed.returncode == 0, signed.stderr
    assert verified.returncode == 0, verified.stderr
    assert (bad.returncode, "bad.onnx" in bad.stderr) == (1, True)
    assert "pushed:1" in listed.stdout
    assert "folder:1" in listed.stdout
    assert "git:1" in shown.stdout
    assert exact["digest"] == file["digest"]
    assert removed.returncode == 0
    assert missing.returncode == 1
    assert "deleted 1 artifacts" in freed.stderr


PYTHON_MODEL = """
import numpy as np


class Model:
    inputs = {"x": ("FP32", [-1, 2])}
    outputs = {"y": ("FP32", [-1, 2])}

    def infer(self, inputs):
        return {"y": np.asarray(inputs["x"])}
"""


def test_on_a_terminal_an_upload_shows_how_far_it_has_come(laptop: Laptop) -> None:
    status, shown = laptop.shell.on_terminal("models", "push", "watched", "third.onnx")

    assert status == 0
    assert "uploading third.onnx" in shown
    assert "kB" in shown
    assert "watched:1 is stored" in shown


def test_a_version_in_use_and_a_repository_are_refused(served: Laptop) -> None:
    repository = served.shell.folder / "repository" / "x" / "1"
    repository.mkdir(parents=True)
    (repository / "model.onnx").write_bytes((served.shell.folder / "mlp.onnx").read_bytes())
    (served.shell.folder / "repository.yaml").write_text(
        "version: 1\nendpoints: [{name: all, model: ./repository}]\n"
    )
    in_use = served.run("models", "rm", "m:1")
    several = served.run("apply", "-f", "repository.yaml")

    assert (in_use.returncode, "is being served" in in_use.stderr) == (1, True)
    assert several.returncode == 1
    assert "push its models one by one" in several.stderr


@pytest.mark.long
def test_a_rollout_is_started_watched_and_told_what_to_do(served: Laptop) -> None:
    started = served.json(
        *("rollout", "start", "m", "--model", "other.onnx", "--steps", "10,50"),
        *("--until", "verdict", "--alpha", "0.01"),
    )
    table = served.run("rollout", "status", "m")
    overview = served.run("status")
    paused = served.run("rollout", "pause", "m", "--reason", "lunch")
    listed = served.run("rollout", "list")
    resumed = served.json("rollout", "resume", "m")
    second = served.run("rollout", "start", "m", "--version", "2")
    aborted = served.run("rollout", "abort", "m", "--reason", "wrong file")
    document = served.json("rollout", "status", "m")
    watched = served.run("rollout", "status", "m", "--watch")
    live = served.shell.on_terminal("rollout", "status", "m", "--watch")
    over = served.run("rollout", "pause", "m")

    assert (started["from_version"], started["to_version"]) == ("1", "2")
    assert [step["weight"] for step in started["steps"]] == [10, 50]  # type: ignore[attr-defined]
    assert table.stdout.startswith(f"rollout {started['id']} of m: canary")
    assert f"m: rollout {started['id']} (canary) to version 2 is " in overview.stdout
    assert "is paused: " in paused.stderr
    assert "lunch" in paused.stderr
    assert f"{started['id']}" in listed.stdout
    assert resumed["phase"] in {"preparing", "progressing"}
    assert (second.returncode, "under way" in second.stderr) == (1, True)
    assert "is aborted: " in aborted.stderr
    assert (document["phase"], document["over"]) == ("aborted", True)
    assert "wrong file" in watched.stdout
    assert (live[0], "wrong file" in live[1]) == (0, True)
    assert (over.returncode, "it is over" in over.stderr) == (1, True)


@pytest.mark.long
def test_waiting_for_a_rollout_ends_with_it_and_says_so_by_exit_status(served: Laptop) -> None:
    start = ("rollout", "start", "m", "--model", "third.onnx", "--wait")
    good = served.run(*start, "--strategy", "blue-green", "--keep-s", "0")
    bad = served.run(
        *("rollout", "start", "m", "--upstream", "http://127.0.0.1:9", "--protocol", "v2"),
        *("--version", "77", "--strategy", "canary", "--wait", "--wait-s", "2"),
    )
    after = served.run("rollout", "abort", "m")
    back = served.run("rollout", "list", "m", "--json")
    history, ends = served.run("history", "m"), served.json("history", "m")["rollouts"]
    served.run("undo", "m", "--to", "1", "--wait")

    assert good.returncode == 0, good.stderr
    assert "promoted after " in good.stderr
    assert "nothing is judged after the switch, as keep_s is 0" in good.stderr
    assert ("promoted after " in history.stdout, "aborted after " in history.stdout) == (True, True)
    assert [end["phase"] for end in ends][:2] == ["aborted", "promoted"]  # type: ignore[attr-defined]
    assert bad.returncode == 3
    assert "did not end within 2 s" in bad.stderr
    assert after.returncode == 0, after.stderr
    assert [r["phase"] for r in json.loads(back.stdout)["rollouts"]][:2] == ["aborted", "promoted"]


def test_undo_brings_back_any_generation(served: Laptop) -> None:
    served.run("apply", "-f", served.spec("{name: m, model: 'm:1', timeout_s: 7}"), "--wait")
    undone = served.run("undo", "m", "--wait")
    nowhere = served.run("undo", "m", "--to", "999")
    entry = httpx.get(f"{served.url}/api/v1/endpoints/m", headers=served.headers).json()["spec"]
    served.spec("{name: m, model: ./mlp.onnx}")

    assert undone.returncode == 0, undone.stderr
    assert "timeout_s 7 becomes 30" in undone.stderr
    assert (nowhere.returncode, "no generation 999" in nowhere.stderr) == (1, True)
    assert "timeout_s" not in entry


def test_events_can_be_followed(served: Laptop) -> None:
    follower = served.shell.start("events", "m", "--follow", "-n", "1")
    assert follower.stdout is not None
    first = follower.stdout.readline()
    body = {"model": "m:1", "timeout_s": 3.5}
    url = f"{served.url}/api/v1/endpoints/m"
    httpx.put(url, json=body, headers=served.headers).raise_for_status()
    second = follower.stdout.readline()
    follower.send_signal(signal.SIGINT)
    follower.communicate(timeout=20)

    assert "m " in first
    assert "put" in second
    assert follower.returncode == 130


@pytest.mark.long
def test_watchers_who_left_make_room_for_others(served: Laptop) -> None:
    with httpx.Client(base_url=served.url, headers=served.headers) as client:
        for _ in range(MAX_WATCHERS + 5):
            with client.stream("GET", "/api/v1/watch") as response:
                assert response.status_code == 200
                assert next(response.iter_lines()) == "retry: 2000"


@pytest.mark.long
def test_feedback_is_taken_or_kept(served: Laptop) -> None:
    kept = served.run("feedback", "no-such-request", "1.5")
    again = served.json("feedback", "no-such-request", "2")
    odd = served.run("feedback", "x", "much")

    assert kept.stderr == "no-such-request: stored until the request is known\n"
    assert again == {"results": [{"request_id": "no-such-request", "outcome": "duplicate"}]}
    assert odd.returncode == 2


@pytest.mark.long
def test_a_context_leads_there_too(served: Laptop) -> None:
    shell = served.shell
    environment = shell.environment
    kept = {k: v for k, v in environment.items() if not k.startswith("HEADRACE_")}
    shell.environment = kept
    try:
        without = served.run("status", "--server", served.url)
        token = served.shell.folder / "token"
        token.write_text(environment["HEADRACE_TOKEN"])
        added = served.run("context", "add", "lab", served.url, "--token-file", token)
        through = served.run("status")
        named = served.run("status", "--server", served.url)
        served.run("context", "use", "local")
        here = served.run("status")
    finally:
        shell.environment = environment

    assert (without.returncode, "--token-file FILE" in without.stderr) == (1, True)
    assert added.returncode == 0, added.stderr
    assert "m         yes" in through.stdout
    # Between the two, memory was measured anew.
    assert "HTTP, gRPC" in named.stdout
    assert "m         yes" in named.stdout
    assert named.stdout.partition("HTTP")[2] == through.stdout.partition("HTTP")[2]
    assert (here.returncode, "no system runs in .headrace" in here.stderr) == (3, True)


def test_a_name_is_answered_only_if_it_was_allowed(laptop: Laptop) -> None:
    codes = [
        httpx.get(f"{laptop.url}/api/v1/spec", headers={**laptop.headers, "host": host}).status_code
        for host in ("models.example", "MODELS.EXAMPLE:8080", "evil.example")
    ]

    assert codes == [200, 200, 421]


@pytest.mark.long
def test_down_elsewhere_needs_the_name_spelled_out(make_shell: MakeShell) -> None:
    server, user = make_shell(), make_shell()
    server.run("up", "mlp.onnx", "--detach", *PORTS)
    control = json.loads((server.home / "run" / "control.json").read_bytes())
    user.environment["HEADRACE_SERVER"] = control["admin_url"]
    user.environment["HEADRACE_TOKEN"] = server.run("token", "show").stdout.strip()
    not_meant = user.run("down")
    still = user.run("status")
    meant = user.run("down", "--server", control["admin_url"])
    server.run("down")  # waits until it is done

    assert "no system runs" in not_meant.stderr
    assert still.returncode == 0
    assert meant.returncode == 0
    assert "is draining and will stop" in meant.stderr
    assert user.run("status").returncode == 3
