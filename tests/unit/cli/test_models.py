import json
import re
from pathlib import Path

import pytest

from headrace.control.model.desired import DesiredArm, DesiredEndpoint, DesiredState, make_revision
from headrace.control.state import home_url, open_store
from headrace.core import EndpointName, ReplicaSettings
from headrace.testing import models
from tests.unit.cli.conftest import Command

pytestmark = pytest.mark.slow  # a model is loaded to prove that it can be

PUSHED = {"reference", "runtime", "runs_code", "signature", "size_bytes", "digest", "first_run"}
"""What docs/how-to/push-models.md promises that stays, among others."""


def test_a_model_is_pushed_listed_shown_and_removed(
    headrace: Command, home: Path, model: Path
) -> None:
    pushed = headrace("models", "push", "fraud", model, "--source", "git:4f442bb")
    listed = headrace("models", "list")
    shown = headrace("models", "show", "fraud")
    removed = headrace("models", "rm", "fraud:1")
    freed = headrace("models", "gc")
    empty = headrace("models", "list")

    command = f"headrace up fraud:1 --home {home}"
    assert pushed.err == f"fraud:1 is stored; serve it with `{command}`\n"
    assert "runtime    onnx\n" in pushed.out
    assert re.search(r"batched    yes.*\ninput      input  FP32  \[any, 32\]\n", pushed.out)
    assert re.search(r"inference  about [0-9.]+ (ms|µs) for one row", pushed.out)
    assert listed.out.splitlines()[1].startswith(
        "fraud:1  onnx     yes      25.9 kB  -           20"
    )
    assert "input      input  FP32  [any, 32]\n" in shown.out
    assert "source     git:4f442bb\n" in shown.out
    assert "runs code  no\n" in shown.out
    assert "fraud:1 is removed" in removed.err
    assert "deleted 1 artifacts, freed 25.9 kB" in freed.err
    assert "no models yet" in empty.err


def test_json_stands_alone_on_standard_output(headrace: Command, model: Path) -> None:
    pushed = headrace("models", "push", "fraud", model, "--json")
    listed = headrace("models", "list", "--json")
    shown = headrace("models", "show", "fraud:1", "--json")
    freed = headrace("models", "gc", "--json")

    assert json.loads(pushed.out) == json.loads(shown.out)
    assert json.loads(pushed.out).keys() >= PUSHED
    assert json.loads(pushed.out)["first_run"]["run_s"] > 0
    assert json.loads(listed.out) == [json.loads(shown.out)]
    assert json.loads(freed.out) == {"artifacts": [], "temporary": 0, "freed_bytes": 0}
    assert pushed.err == ""


def test_a_damaged_entry_is_named_and_the_others_are_listed(
    headrace: Command, home: Path, model: Path
) -> None:
    headrace("models", "push", "fraud", model)
    (home / "registry" / "fraud" / "1.json").write_text("{")
    headrace("models", "push", "other", model)

    listed = headrace("models", "list")

    assert "damaged: " in listed.err
    assert "other:1" in listed.out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["show", "nobody"], "the registry holds no model 'nobody'"),
        (["show", "fraud:x"], "version 'x' is not allowed"),
        (["rm", "nobody:1"], "the registry holds no"),
        (["push", "no good", "mlp.onnx"], "'no good' is not allowed"),
        (["push", "bad", "bad.onnx"], "bad.onnx"),
        (["push", "bad", "bad.joblib"], "is a pickle, which can run"),
        (["push", "bad", "bad.engine"], "bad.engine: is a TensorRT engine"),
        (["push", "bad", "bad.onnx", "--runtime", "x"], "available runtimes:"),
    ],
)
def test_what_cannot_be_done_says_why(
    headrace: Command, model: Path, arguments: list[str], text: str
) -> None:
    for name in ("bad.onnx", "bad.joblib", "bad.engine"):
        model.with_name(name).write_text("no model")
    headrace("models", "push", "fraud", model)

    outcome = headrace("models", *arguments)

    assert outcome.status == 1
    assert text in outcome.err
    assert outcome.err.count("\n") == 1


def test_a_version_in_use_stays(headrace: Command, home: Path, model: Path) -> None:
    headrace("models", "push", "fraud", model)
    settings = ReplicaSettings(model_name="f", model_version="1", path=str(model))
    name = EndpointName("f")
    revision = make_revision(endpoint=name, model="fraud:1", settings=settings)
    endpoint = DesiredEndpoint(
        name=name,
        timeout_s=None,
        arms=(DesiredArm(revision=revision, weight=100, replicas=1),),
    )
    store = open_store(home_url(home))
    desired = DesiredState(generation=1, endpoints=(endpoint,))
    store.save.blocking(desired, timestamp=1.0, reason="applied")
    store.close()

    outcome = headrace("models", "rm", "fraud:1")

    assert outcome.status == 1
    assert "fraud:1 is being served" in outcome.err


def test_a_version_is_signed_and_verified(headrace: Command, model: Path, tmp_path: Path) -> None:
    keys, others = tmp_path / "keys", tmp_path / "others"
    made = headrace("models", "keygen", "--out", keys)
    headrace("models", "keygen", "--out", others)
    headrace("models", "push", "fraud", model)
    trusted = ("--trusted", keys / "model-signing.pub.pem")
    unsigned = headrace("models", "verify", "fraud", *trusted)
    wrong = headrace(
        *("models", "sign", "fraud:1", "--key", keys / "model-signing.pem"),
        *("--content", keys / "model-signing.pem"),
    )
    bare = headrace("models", "sign", "fraud", "--key", keys / "model-signing.pem")
    signed = headrace(
        *("models", "sign", "fraud:1", "--key", keys / "model-signing.pem", "--content", model)
    )
    right = headrace("models", "verify", "fraud:1", *trusted)
    strange = headrace("models", "verify", "fraud", "--trusted", others / "model-signing.pub.pem")
    shown = headrace("models", "show", "fraud")
    listed = json.loads(headrace("models", "list", "--json").out)

    assert "keep it secret" in made.err
    assert (unsigned.status, "it is not signed" in unsigned.err) == (1, True)
    assert (wrong.status, "nothing is signed" in wrong.err) == (1, True)
    assert (bare.status, "fraud:VERSION" in bare.err) == (2, True)
    assert "fraud:1 is signed by ed25519:" in signed.err
    assert (right.status, "fraud:1 is what ed25519:" in right.err) == (0, True)
    assert (strange.status, "does not list" in strange.err) == (1, True)
    assert "signed     by ed25519:" in shown.out
    assert len(listed[0]["signatures"]) == 1


def test_a_python_model_is_pushed_only_where_its_code_may_run(
    headrace: Command, tmp_path: Path
) -> None:
    path = tmp_path / "double.py"
    path.write_text(models.python_double())
    refused = headrace("models", "push", "double", path)
    pushed = headrace("models", "push", "double", path, "--allow-code")
    listed = headrace("models", "list")
    served = headrace("serve", "double:1")

    assert (refused.status, "`--allow-code` on the command line" in refused.err) == (1, True)
    assert pushed.status == 0
    assert "python (runs code)" in listed.out
    assert (served.status, "runs its author's code" in served.err) == (1, True)


def test_a_model_that_cannot_take_made_up_inputs_is_stored_all_the_same(
    headrace: Command, tmp_path: Path
) -> None:
    path = tmp_path / "picky.py"
    path.write_text(models.python_double().replace("return {", "raise ValueError('no'); {"))

    pushed = headrace("models", "push", "picky", path, "--allow-code")

    assert pushed.status == 0
    assert "inference  fails on generated inputs: the model failed: ValueError: no" in pushed.out
