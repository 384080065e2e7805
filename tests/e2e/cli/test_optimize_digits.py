"""Networks that tell handwritten digits: what makes them slower or worse is seen, never taken."""

import json
from typing import Any

import pytest

from tests import digits_net
from tests.e2e.cli.conftest import Shell

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.long]


def test_dynamic_int8_of_a_conv_net_is_measured_and_rejected_as_slower(shell: Shell) -> None:
    pytest.importorskip("nncf", reason="needs the extra `optimize`")
    path = digits_net.write(shell.folder)
    data = digits_net.write_labelled(shell.folder / "test.npz")
    recipes = ("onnxruntime-int8-dynamic", "onnxruntime-int8-static", "openvino-int8")

    done = shell.run(
        *("optimize", path, "--data", data, "--budget", "60s", "--json"),
        *(part for name in recipes for part in ("--only", name)),
    )

    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["model_class"] == "conv-net"
    assert report["baseline"]["name"] == "onnxruntime-fp32"
    assert report["baseline"]["accuracy"] > 0.9
    assert report["baseline"]["n"] == report["data"]["n"] == 797
    rejected = {one["name"]: one for one in report["rejected"]}
    dynamic = rejected["onnxruntime-int8-dynamic"]
    assert dynamic["cut_ci_ratio"][1] < 0
    assert dynamic["reason"].startswith("slower than the baseline: ")
    tried = rejected.keys() | {one["name"] for one in (*report["candidates"], report["chosen"])}
    assert set(recipes) <= tried
    for one in (*report["candidates"], report["chosen"]):
        is_baseline = one["name"] == report["baseline"]["name"]
        assert is_baseline or (one["cut_ci_ratio"][0] > 0 and one["accuracy_loss"] <= 0.01)


def test_a_pruned_classifier_is_taken_where_it_is_as_good_and_rejected_where_it_is_not(
    shell: Shell,
) -> None:
    data = digits_net.write_rows(shell.folder / "test.npz", taught=False)
    teach = digits_net.write_rows(shell.folder / "teach.npz", taught=True)

    def pruned(width: int) -> dict[str, Any]:
        model = digits_net.write_perceptron(shell.folder / f"mlp{width}.onnx", width=width)
        done = shell.run(
            *("optimize", model, "--data", data, "--teach", teach, "--only", "pruned-ffn-50"),
            *("--budget", "60s", "--no-push", "--json"),
        )
        assert done.returncode == 0, done.stderr
        report: dict[str, Any] = json.loads(done.stdout)
        return report

    wide, narrow = pruned(512), pruned(16)

    assert wide["chosen"]["name"] == "pruned-ffn-50"
    assert wide["chosen"]["cut_ci_ratio"][0] > 0
    assert wide["chosen"]["accuracy_loss"] <= 0.01
    assert wide["chosen"]["recipe"]["layers"] == "2 x ffn"
    [rejected] = narrow["rejected"]
    assert rejected["name"] == "pruned-ffn-50"
    assert "significantly worse" in rejected["reason"]
    assert narrow["chosen"]["name"] == narrow["baseline"]["name"]
