"""A model is made faster, with the proof, and the result is a version like any other."""

import json
import signal
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from headrace.core import Tensors
from headrace.optimize.search.journal import FILE_NAME
from headrace.runtimes import load_model
from tests import network_models
from tests.e2e.cli.conftest import PORTS, Shell

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture
def encoder(shell: Shell) -> Path:
    return network_models.write(shell.folder, network_models.encoder_layer())


def labelled(model: Path, file: Path, examples: list[Tensors], *, wrong: int = 10) -> Path:
    """Examples with the model's own answers as labels, but for some."""
    loaded = load_model(model)
    lines = []
    for number, example in enumerate(examples):
        answer = int(np.argmax(loaded.run(example)["logits"][0]))
        row = {name: array[0].tolist() for name, array in example.items()}
        row["label"] = 1 - answer if number % 97 == 0 and number < 97 * wrong else answer
        lines.append(msgspec.json.encode(row))
    file.write_bytes(b"\n".join(lines) + b"\n")
    return file


@pytest.mark.long
def test_trees_become_a_faster_version_with_its_lineage(shell: Shell) -> None:
    xgboost = pytest.importorskip("xgboost", reason="the extra xgboost is not installed")
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(800, 8)).astype(np.float32)
    truth = (rows[:, 0] + rows[:, 1] > 0).astype(int)
    booster = xgboost.train(
        {"objective": "binary:logistic", "seed": 1}, xgboost.DMatrix(rows, truth), 60
    )
    booster.save_model(shell.folder / "fraud.ubj")
    header = ",".join([f"c{i}" for i in range(8)] + ["label"])
    table = np.column_stack([rows, truth])
    np.savetxt(shell.folder / "test.csv", table, delimiter=",", header=header, comments="")

    done = shell.run(
        *("optimize", "fraud.ubj", "--data", "test.csv", "--name", "fraud", "--budget", "20s"),
        *("--report", "report.html", "--out", "made", "--json"),
    )

    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["baseline"]["name"] == "native"
    chosen = report["chosen"]
    assert chosen["name"] == "onnxruntime-trees"
    assert 0 < chosen["cut_ci_ratio"][0] <= chosen["cut_ratio"] < 1
    assert chosen["p50_ci_s"][0] <= chosen["p50_s"] <= chosen["p50_ci_s"][1]
    assert chosen["accuracy"] == report["baseline"]["accuracy"] > 0.8
    assert report["version"] == "fraud:1"
    version = json.loads(shell.run("models", "show", "fraud:1", "--json").stdout)
    assert version["runtime"] == "optimized"
    assert version["metadata"]["optimized_runtime"] == "xgboost"
    assert version["metadata"]["optimized_from"] == report["model_digest"]
    assert version["metadata"]["judged_examples"] == "800"
    page = (shell.folder / "report.html").read_text()
    assert "<svg" in page
    assert "onnxruntime-trees" in page
    made = load_model(shell.folder / "made")
    assert made.run({"input": rows[:3]})["label"].tolist() == truth[:3].tolist()


@pytest.mark.long
def test_a_scikit_learn_file_becomes_a_faster_version(shell: Shell) -> None:
    skops = pytest.importorskip("skops.io", reason="the extra sklearn is not installed")
    from sklearn.datasets import load_breast_cancer  # noqa: PLC0415  # takes a second
    from sklearn.ensemble import RandomForestClassifier  # noqa: PLC0415  # as above

    rows, truth = load_breast_cancer(return_X_y=True)
    # An even number of trees may tie, and sums of FP32 and FP64 need not break a tie alike.
    learned = RandomForestClassifier(61, random_state=0).fit(rows[:300], truth[:300])
    skops.dump(learned, shell.folder / "forest.skops")
    header = ",".join([f"c{i}" for i in range(rows.shape[1])] + ["label"])
    table = np.column_stack([rows[300:], truth[300:]])
    np.savetxt(shell.folder / "test.csv", table, delimiter=",", header=header, comments="")

    done = shell.run(
        *("optimize", "forest.skops", "--data", "test.csv", "--budget", "20s", "--json"),
    )

    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["baseline"]["name"] == "native"
    assert report["chosen"]["name"] == "onnxruntime-trees"
    assert report["chosen"]["cut_ci_ratio"][0] > 0
    assert report["chosen"]["accuracy"] == report["baseline"]["accuracy"] > 0.9


@pytest.mark.long
def test_an_encoder_is_judged_by_labels_and_what_spoils_it_is_rejected(
    shell: Shell, encoder: Path
) -> None:
    data = labelled(encoder, shell.folder / "test.jsonl", network_models.sentences(1500))

    done = shell.run(
        *("optimize", str(encoder), "--data", str(data), "--name", "text", "--budget", "40s"),
        *("--length", "32", "--json"),
    )

    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["model_class"] == "transformer"
    assert report["data"]["n"] == 1500
    entries = [*report["candidates"], *report["rejected"], report["chosen"]]
    assert {"openvino-int8", "onnxruntime-int8-dynamic"} <= {entry["name"] for entry in entries}
    assert all(entry["reason"] for entry in entries)
    for entry in report["candidates"]:
        assert entry["accuracy_loss"] <= 0.01
    assert report["chosen"]["accuracy_loss"] <= 0.01


@pytest.mark.long
@pytest.mark.parametrize("rows", [1, 8])
def test_dynamic_int8_loses_batching_and_is_rejected_where_the_load_needs_it(
    shell: Shell, encoder: Path, rows: int
) -> None:
    data = labelled(encoder, shell.folder / "test.jsonl", network_models.sentences(300))

    done = shell.run(
        *("optimize", str(encoder), "--data", str(data), "--only", "onnxruntime-int8-dynamic"),
        *("--budget", "25s", "--length", "32", "--rows", str(rows), "--no-push", "--json"),
    )

    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    tried = [*report["candidates"], *report["rejected"], report["chosen"]]
    [dynamic] = [one for one in tried if one["name"] == "onnxruntime-int8-dynamic"]
    assert "a batch of 8 rows, run row by row, takes" in dynamic["unbatched"]
    assert "DynamicQuantizeLinear" in dynamic["unbatched"]
    assert isinstance(dynamic["batch_cut_ratio"], float)
    loses = "it loses batching, which the requested load needs"
    assert dynamic["reason"].startswith(loses) == (rows == 8)
    assert dynamic["p50_s"] > 0
    assert rows == 1 or report["chosen"]["name"] == "onnxruntime-fp32"


def test_without_data_it_says_that_it_saw_fidelity_only(shell: Shell, encoder: Path) -> None:
    done = shell.run(
        *("optimize", str(encoder), "--budget", "15s", "--only", "openvino-fp32", "--no-push")
    )

    assert done.returncode == 0, done.stderr
    assert "fidelity only" in " ".join(done.stdout.split())
    assert not (shell.home / "registry").exists()


@pytest.mark.long
def test_what_was_measured_is_kept_and_gone_on_with(shell: Shell, encoder: Path) -> None:
    data = labelled(encoder, shell.folder / "test.jsonl", network_models.sentences(300))
    command = ("optimize", str(encoder), "--data", str(data), "--name", "text", "--budget", "60s")
    running = shell.start(*command)
    until = time.monotonic() + 60
    while not _timed(shell.home) and time.monotonic() < until:
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=30)
    assert running.returncode == 130
    assert "Continue by repeating the command with --resume" in err
    before = _timed(shell.home)
    assert before

    done = shell.run(*command, "--budget", "20s", "--resume", "--json")

    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["baseline"]["name"] == "onnxruntime-fp32"
    assert report["elapsed_s"] > 0
    again = shell.run(*command, "--resume")
    assert again.returncode == 1
    assert "nothing to resume" in again.stderr


def _timed(home: Path) -> int:
    """Windows that were kept so far."""
    files = home.glob(f"optimize/*/own/{FILE_NAME}")
    return sum(file.read_bytes().count(b'"timed"') for file in files)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing.onnx"], "nothing.onnx"),
        pytest.param(["model.onnx", "--data", "empty.csv"], "empty.csv", marks=pytest.mark.long),
        (["model.onnx", "--data", "words.csv"], "tokenizer.json"),
        (["model.onnx", "--only", "magic"], "no recipe of this model matches 'magic'"),
        pytest.param(["text.txt"], "no runtime recognises", marks=pytest.mark.long),
        pytest.param(["model.onnx", "--budget", "soon"], "not a duration", marks=pytest.mark.long),
        pytest.param(["model.onnx", "--max-loss", "200%"], "not a ratio", marks=pytest.mark.long),
        (["model.onnx", "--no-push", "--canary", "fraud"], "--no-push"),
        (["model.onnx", "--resume"], "nothing to resume"),
    ],
)
def test_mistakes_are_told_at_once(
    shell: Shell, encoder: Path, arguments: list[str], said: str
) -> None:
    encoder.rename(shell.folder / "model.onnx")
    (shell.folder / "empty.csv").write_text("")
    (shell.folder / "words.csv").write_text("a,b\nhello,world\n")
    (shell.folder / "text.txt").write_text("hello")

    done = shell.run("optimize", *arguments)

    assert done.returncode in {1, 2}
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert str(shell.home) not in done.stderr
    assert not list(shell.home.glob("optimize/*"))
    assert not shell.home.exists() or shell.home.stat().st_mode & 0o077 == 0


@pytest.mark.long
def test_the_result_is_rolled_out_with_one_flag(shell: Shell) -> None:
    xgboost = pytest.importorskip("xgboost", reason="the extra xgboost is not installed")
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(300, 8)).astype(np.float32)
    truth = (rows[:, 0] > 0).astype(int)
    booster = xgboost.train({"objective": "binary:logistic"}, xgboost.DMatrix(rows, truth), 60)
    booster.save_model(shell.folder / "fraud.ubj")
    running = shell.start("up", "fraud.ubj", *PORTS)
    try:
        until = time.monotonic() + 60
        while shell.run("status").returncode and time.monotonic() < until:
            time.sleep(0.2)

        done = shell.run(
            *("optimize", "fraud:1", "--budget", "15s", "--canary", "fraud", "--max-loss", "5%")
        )

        assert done.returncode == 0, done.stderr
        assert "rollout" in done.stderr
        status = json.loads(shell.run("rollout", "status", "fraud", "--json").stdout)
        assert status["to_version"] == "2"
    finally:
        running.send_signal(signal.SIGTERM)
        running.communicate(timeout=60)
