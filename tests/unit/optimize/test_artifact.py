import json
from pathlib import Path

import numpy as np
import pytest

from headrace.core import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    UnsupportedModelError,
)
from headrace.optimize.artifact import write_artifact
from headrace.optimize.candidate import Candidate
from headrace.registry import read_content
from headrace.runtimes import detect_runtime, inspect_model, load_model
from headrace.runtimes.base import Tuning
from headrace.runtimes.optimized.file import OtherProcessor
from headrace.runtimes.optimized.processor import this_processor
from headrace.testing import models
from tests import openvino_models, optimized_models
from tests.optimized_models import asked, onnx_source

HERE = this_processor()


def candidate(path: Path, name: str = "one", runtime: str = "onnx") -> Candidate:
    return Candidate(name=name, title="", runtime=runtime, path=path, recipe={"how": name})


def test_what_is_written_is_one_model_that_answers_as_its_source(tmp_path: Path) -> None:
    path = optimized_models.write(tmp_path, tuning=Tuning(arena=True))
    source = load_model(tmp_path / "source" / "mlp.onnx")
    inputs, answers = asked(tmp_path / "source" / "mlp.onnx", "onnx", 1)[0]

    assert detect_runtime(path).name == "optimized"
    model = load_model(path)
    assert model.signature == source.signature
    for name, array in model.run(inputs).items():
        assert np.array_equal(array, answers[name])


def test_the_manifest_says_what_was_done_and_measured(tmp_path: Path) -> None:
    path = optimized_models.write(tmp_path)
    document = json.loads((path / "optimized.json").read_text())

    assert document["members"][0]["path"] == "onnx-0/mlp.onnx"
    assert document["recipe"] == {"candidate": "onnx-0", "what": "nothing"}
    assert document["figures"] == {"p50_s": 0.001, "cut_ratio": 0.6}
    assert document["processor"]["features"] == list(HERE.features)


def test_the_same_candidates_make_the_same_digest(tmp_path: Path) -> None:
    one = optimized_models.write(tmp_path / "one")
    other = optimized_models.write(tmp_path / "other")

    assert read_content(one).digest == read_content(other).digest


def test_weights_beside_a_file_come_with_it(tmp_path: Path) -> None:
    external = models.write_external(tmp_path / "external")
    network = openvino_models.perceptron(tmp_path / "network")
    (tmp_path / "external" / "unrelated.txt").write_text("notes")

    for number, (path, runtime) in enumerate([(external, "onnx"), (network, "openvino")]):
        made = write_artifact(
            tmp_path / str(number),
            [(candidate(path, runtime=runtime), None)],
            processor=HERE,
            check=asked(path, runtime),
        )
        assert inspect_model(made).runtime == "optimized"
        assert not list(made.rglob("*.txt"))


def test_a_directory_is_taken_whole_and_a_shared_file_once(tmp_path: Path) -> None:
    folder = models.write_external(tmp_path / "external").parent
    both = [(candidate(folder), 4), (candidate(folder), None)]
    made = write_artifact(tmp_path / "made", both, processor=HERE, check=asked(folder, "onnx"))

    document = json.loads((made / "optimized.json").read_text())
    assert [member["path"] for member in document["members"]] == ["one", "one"]
    assert len(list(made.rglob("*.onnx"))) == 1


def test_several_candidates_keep_their_recipes_apart(tmp_path: Path) -> None:
    source, other = onnx_source(tmp_path), onnx_source(tmp_path / "other")
    made = write_artifact(
        tmp_path / "made",
        [(candidate(source), 1), (candidate(other, "two"), None)],
        processor=HERE,
        check=asked(source, "onnx"),
    )

    document = json.loads((made / "optimized.json").read_text())
    assert document["recipe"] == {
        "candidate": "one and two",
        "one: how": "one",
        "two: how": "two",
    }


def test_what_does_not_pass_its_own_check_is_never_there(tmp_path: Path) -> None:
    source = onnx_source(tmp_path / "source")
    check = asked(source, "onnx")
    for _, answers in check:
        for name in answers:
            answers[name] = answers[name] * -1

    with pytest.raises(FailedPreconditionError, match="of 7 answers differ, by up to 2 of"):
        write_artifact(tmp_path / "made", [(candidate(source), None)], processor=HERE, check=check)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_members_that_do_not_agree_are_refused(tmp_path: Path) -> None:
    one, two = onnx_source(tmp_path), onnx_source(tmp_path, "two_outputs")
    members = [(candidate(one), 1), (candidate(two, "two"), None)]
    with pytest.raises(UnsupportedModelError, match=r"'two/two_outputs\.onnx'"):
        write_artifact(tmp_path / "made", members, processor=HERE, check=asked(one, "onnx"))


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    source = onnx_source(tmp_path)
    (tmp_path / "empty").mkdir()
    write_artifact(
        tmp_path / "empty",
        [(candidate(source), None)],
        processor=HERE,
        check=asked(source, "onnx"),
    )
    for there in (tmp_path / "empty", source):
        with pytest.raises(AlreadyExistsError, match="exists already"):
            write_artifact(there, [(candidate(source), None)], processor=HERE, check=())


@pytest.mark.parametrize("name", ["", "../up", "a/b", "optimized.json", ".hidden", "x" * 200])
def test_a_candidate_whose_name_is_no_directory_is_refused(tmp_path: Path, name: str) -> None:
    source = onnx_source(tmp_path)
    with pytest.raises(InvalidArgumentError, match="not a valid directory name"):
        write_artifact(
            tmp_path / "made",
            [(candidate(source, name), None)],
            processor=HERE,
            check=asked(source, "onnx"),
        )
    assert not (tmp_path / "made").exists()


def test_two_files_under_one_name_are_refused(tmp_path: Path) -> None:
    one, two = onnx_source(tmp_path), onnx_source(tmp_path / "other")
    with pytest.raises(InvalidArgumentError, match="two candidates have the name 'one'"):
        write_artifact(
            tmp_path / "made",
            [(candidate(one), 1), (candidate(two), None)],
            processor=HERE,
            check=asked(one, "onnx"),
        )


def test_a_model_to_be_verified_needs_something_to_verify_by(tmp_path: Path) -> None:
    members = [(candidate(onnx_source(tmp_path)), None)]
    with pytest.raises(InvalidArgumentError, match="needs check requests"):
        write_artifact(tmp_path / "made", members, processor=HERE)

    made = write_artifact(tmp_path / "made", members, processor=HERE, policy=OtherProcessor.REFUSE)
    assert load_model(made).signature.batched


def test_a_figure_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="figure 'p50_s' is nan"):
        write_artifact(
            tmp_path / "made",
            [(candidate(onnx_source(tmp_path)), None)],
            processor=HERE,
            policy=OtherProcessor.ALLOW,
            figures={"p50_s": float("nan")},
        )
