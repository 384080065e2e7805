"""`headrace models push --convert onnx`, as a shell runs it."""

import json
import re

import numpy as np
import pytest

from tests import tabular_models
from tests.e2e.cli.conftest import MakeShell, Shell

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

tabular_models.library("onnxmltools", "convert")


@pytest.fixture(scope="module")
def shell(make_shell: MakeShell) -> Shell:
    """With a model of LightGBM's, and rows of five columns in several files."""
    shell = make_shell()
    tabular_models.lightgbm(shell.folder, "binary")
    rows = tabular_models.ROWS[:50].astype(float)
    (shell.folder / "rows.json").write_text(json.dumps({"input": rows.tolist()}))
    np.savez(shell.folder / "narrow.npz", input=rows[:, :3])
    (shell.folder / "words.csv").write_text("a,b,c,d,e\nx,y,z,u,v\n")
    return shell


def push(shell: Shell, *more: str) -> "tuple[int, str, str]":
    done = shell.run("models", "push", "m", "binary.txt", "--convert", "onnx", *more)
    return done.returncode, done.stdout, done.stderr


def test_what_was_converted_is_shown_and_kept(shell: Shell) -> None:
    status, out, err = push(shell)
    shown = json.loads(shell.run("models", "show", "m", "--json").stdout)
    listed = shell.run("models", "show", "m").stdout

    assert status == 0, err
    assert re.search(r"^converted from +sha256:", out, re.MULTILINE)
    assert re.search(r"^converter +headrace ", listed, re.MULTILINE)
    assert "converted by headrace " in err
    assert "not tested on your data" in err
    assert "rows of FP64 on and beside all" in err
    assert (shown["runtime"], shown["filename"]) == ("onnx", "binary.onnx")
    assert shown["source"] == str(shell.folder / "binary.txt")
    assert shown["metadata"]["converted_runtime"] == "lightgbm"
    assert shown["metadata"]["converted_file"] == "binary.txt"
    assert int(shown["metadata"]["compared_rows"]) > 1280
    assert shown["metadata"]["tested_on_data"] == "no"


@pytest.mark.long
def test_rows_of_a_file_are_compared_too_and_make_no_other_version(shell: Shell) -> None:
    status, out, err = push(shell, "--convert-data", "rows.json")

    assert status == 0, err
    assert re.search(r"^model +m:1$", out, re.MULTILINE)
    assert "on 50 given rows answers differ" in err
    assert "0.00% of the rows get another class" in err


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--convert-data", "narrow.npz"], "narrow.npz does not fit the model: unexpected shape"),
        (["--convert-data", "words.csv"], "'input' takes numbers, and column 1 is text"),
        (["--convert-tolerance", "1e-17"], "than the tolerance of 1e-17"),
        (["--runtime", "xgboost"], "binary.txt: "),
        (["--runtime", "nobody"], "'nobody', which has no converter; models of catboost"),
    ],
)
def test_what_cannot_be_done_says_why(shell: Shell, options: list[str], told: str) -> None:
    status, out, err = push(shell, *options)

    assert (status, out) == (1, "")
    assert told in err
    assert err.count("\n") == 1


def test_other_formats_than_onnx_are_a_mistake_of_the_command_line(shell: Shell) -> None:
    done = shell.run("models", "push", "m", "binary.txt", "--convert", "tensorrt")

    assert done.returncode == 2
    assert "onnx" in done.stderr
