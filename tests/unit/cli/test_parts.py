import json
import sys
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from headrace.cli.base import output
from headrace.cli.base.management import error_from_problem
from headrace.cli.base.options import check_log_level, name_from
from headrace.cli.status import render
from headrace.cli.up.foreground import replica_settings
from headrace.cli.up.start import example_body
from headrace.core import (
    BatchingSpec,
    Datatype,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ReplicaSettings,
    TensorSpec,
    UnavailableError,
    check_name,
)
from tests.unit.cli.conftest import Command


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/m/digits.onnx", "digits"),
        ("/m/my model (2).onnx", "my-model-2"),
        ("/repository/fraud/3/model.onnx", "fraud"),
        ("/model.onnx", "model"),
        ("/1/model.onnx", "1"),
        ("/m/ü.onnx", "model"),
    ],
)
def test_a_model_is_called_after_what_tells_it_apart(path: str, name: str) -> None:
    assert name_from(Path(path)) == name


@given(st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=200))
def test_every_file_gets_an_allowed_name(text: str) -> None:
    assert check_name(name_from(Path("/x") / text))


def test_levels_are_checked() -> None:
    assert check_log_level("warning") == "WARNING"
    with pytest.raises(typer.BadParameter):
        check_log_level("loud")


def test_tables_keep_markup_and_long_cells_whole(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 300
    output.show(output.table([["[bold]", long], ["b", "c"]], "one", "two"))

    assert capsys.readouterr().out.splitlines() == [
        "one     two",
        f"[bold]  {long}",
        "b       c",
    ]


def test_labels_line_up() -> None:
    assert output.columns([("a", "1"), ("bcd", "2")]) == ["a    1", "bcd  2"]
    assert output.columns([]) == []


def test_progress_is_silent_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    with output.progress("working"):
        pass

    assert capsys.readouterr().err == ""


def test_progress_is_shown_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with output.progress("working"):
        pass

    assert "working" in capsys.readouterr().err


def test_an_example_is_short_valid_and_named() -> None:
    body = json.loads(
        example_body(
            [
                TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1, 2)),
                TensorSpec(name="t", datatype=Datatype.BYTES, shape=(-1, 1)),
                TensorSpec(name="i", datatype=Datatype.INT64, shape=(-1, -1)),
            ]
        )
    )

    x, text, ids = body["inputs"]
    assert x["shape"] == [1, 2]
    assert all(len(str(value)) <= 3 for value in x["data"])
    assert text["data"] == ["a"]
    assert ids["datatype"] == "INT64"


def test_an_example_has_categories_that_the_model_knows_exactly() -> None:
    columns = [
        TensorSpec(name="city", datatype=Datatype.BYTES, shape=(-1,)),
        TensorSpec(name="rate", datatype=Datatype.FP64, shape=(-1,)),
    ]
    body = json.loads(example_body(columns, {"city": "Bern", "rate": 0.12345}))

    assert [one["data"] for one in body["inputs"]] == [["Bern"], [0.12345]]


def test_a_problem_becomes_its_error_with_every_mistake() -> None:
    problem = {
        "code": "INVALID_ARGUMENT",
        "detail": "the spec is wrong",
        "errors": [{"place": "endpoints[0]", "message": "is odd"}, {"message": "too"}],
    }

    error = error_from_problem(400, json.dumps(problem).encode())

    assert isinstance(error, InvalidArgumentError)
    assert str(error).splitlines() == [
        "the spec is wrong",
        "  endpoints[0]: is odd",
        "  spec: too",
    ]


@pytest.mark.parametrize("detail", ["2 mistakes:\n  a\n  b", "a: b; c: d"])
def test_mistakes_that_the_text_tells_are_not_told_twice(detail: str) -> None:
    problem = {
        "code": "FAILED_PRECONDITION",
        "detail": detail,
        "errors": [{"place": "a", "message": "b"}],
    }

    error = error_from_problem(409, json.dumps(problem).encode())

    assert isinstance(error, FailedPreconditionError)
    assert str(error) == detail


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b'{"code": "ODD"}'])
def test_another_servers_error_is_known_by_its_status(body: bytes) -> None:
    assert isinstance(error_from_problem(503, body), UnavailableError)


def settings(model: str, home: Path, name: str | None = None) -> ReplicaSettings:
    return replica_settings(
        model,
        name=name,
        home=home,
        host="127.0.0.1",
        port=0,
        grpc_port=None,
        metrics_port=0,
        batching=BatchingSpec(),
        log_format="text",
    )


def test_a_file_is_served_under_its_name(model: Path, home: Path) -> None:
    found = settings(str(model), home)

    assert (found.model_name, found.model_version, found.path) == ("mlp", "1", str(model))
    assert settings(str(model), home, name="x").model_name == "x"


@pytest.mark.slow
def test_a_stored_version_is_served_from_the_registry(
    headrace: Command, model: Path, home: Path
) -> None:
    headrace("models", "push", "fraud", model)

    found = settings("fraud", home)

    assert (found.model_name, found.model_version, found.runtime) == ("fraud", "1", "onnx")
    assert found.path.startswith(str(home))


def test_what_is_neither_file_nor_stored_is_named(home: Path) -> None:
    with pytest.raises(NotFoundError, match="no file or directory 'nobody'"):
        settings("nobody", home)


@pytest.mark.parametrize(
    ("made", "asked", "told"),
    [
        ((), "models/m.onnx", "no directory '{at}/models' either"),
        (("models/",), "models/m.onnx", "'{at}/models' is empty: mount files into the container"),
        (("models/n.onnx",), "models/m.onnx", "'{at}/models' has n.onnx$"),
        (tuple(f"models/{i:02}.onnx" for i in range(11)), "models/m", "07.onnx and 3 more$"),
        (("m",), "m/m.onnx", "'{at}/m': Not a directory"),
    ],
)
def test_of_a_path_that_is_not_there_it_is_said_what_is(
    made: tuple[str, ...], asked: str, told: str, tmp_path: Path, home: Path
) -> None:
    for name in made:
        folder = tmp_path / name.rpartition("/")[0]
        folder.mkdir(exist_ok=True)
        if not name.endswith("/"):
            (tmp_path / name).touch()

    with pytest.raises(NotFoundError, match=told.format(at=tmp_path)):
        settings(str(tmp_path / asked), home)


STATUS = {
    "running": True,
    "ready": False,
    "addresses": {"http": "http://127.0.0.1:8000", "admin": ""},
    "endpoints": [
        {
            "name": "m",
            "ready": False,
            "message": "version 2: 0 of 1 replicas ready",
            "revisions": [
                {
                    "version": "1",
                    "model": "m:1",
                    "weight": 90,
                    "replicas": [
                        {
                            "name": "m-1",
                            "state": "ready",
                            "restarts": 1,
                            "rss_bytes": 5e7,
                            "device": {
                                "used": ["CUDA", "CPU"],
                                "failed": {"Tensorrt": "libnvinfer.so.10 is not there"},
                            },
                        },
                        {"name": "m-2", "state": "ready", "restarts": 0, "rss_bytes": None},
                    ],
                },
                {
                    "version": "2",
                    "model": "m:2",
                    "weight": 10,
                    "replicas": [{"name": "m-3", "state": "exited", "reason": "[boom]"}],
                },
            ],
        },
        {"name": "empty", "ready": True, "message": "", "revisions": []},
    ],
}


def test_the_status_is_a_table_with_troubles_and_addresses(
    capsys: pytest.CaptureFixture[str],
) -> None:
    output.show(render(STATUS))

    assert capsys.readouterr().out.splitlines() == [
        "endpoint  ready  version  model  weight  replicas  restarts  memory  device",
        "m         no     1        m:1    90%     2/2       1         50 MB   CUDA, CPU",
        "                 2        m:2    10%     0/1       0         -       -",
        "empty     yes    -        -      -       -         -         -       -",
        "m: version 2: 0 of 1 replicas ready",
        "m-1: Tensorrt is present but not usable: libnvinfer.so.10 is not there",
        "m-3: exited, [boom]",
        "",
        "HTTP, gRPC  http://127.0.0.1:8000",
    ]


def test_rollouts_under_way_and_advice_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    rollout = {
        "id": "r7",
        "endpoint": "m",
        "strategy": "canary",
        "phase": "progressing",
        "over": False,
        "to_version": "2",
        "step": 0,
        "steps": [{"weight": 10}],
        "weight": 10,
    }
    revision = {"version": "1", "model": "m:1", "weight": 100, "replicas": [], "role": "baseline"}
    endpoint = {"name": "m", "ready": True, "message": ""}
    revisions = [revision | {"advice": "2 threads, 200 MB"}]
    document = {
        "running": True,
        "endpoints": [endpoint | {"revisions": revisions}],
        "rollouts": [rollout],
    }
    output.show(render(document))

    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[1].startswith("m         yes    1 baseline  m:1")
    where = "is progressing, step 1 of 1 (10 %); `headrace rollout status m`"
    assert lines[2] == f"m: rollout r7 (canary) to version 2 {where}"
    assert lines[3] == "m version 1: 2 threads, 200 MB"


def test_feature_views_are_told_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    view = {"failures": 0, "message": "", "age_s": 41.0, "done": 0, "of": 0}
    views = [
        view | {"name": "a", "state": "waiting"},
        view | {"name": "b", "state": "running", "age_s": None, "done": 3, "of": 9},
        view | {"name": "c", "state": "failing", "failures": 4, "message": "no such file"},
        view | {"name": "d", "state": "unscheduled"},
    ]
    output.show(render({"running": True, "endpoints": [], "features": views}))

    lines = capsys.readouterr().out.splitlines()
    assert "feature view 'a': waiting, newest 41 s old" in lines
    assert "feature view 'b': running, 3 of 9 written, no data yet" in lines
    assert "feature view 'c': cannot be materialized (4 times): no such file" in lines
    assert not [line for line in lines if "'d'" in line]


def test_how_an_optimized_version_runs_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    text = "openvino-int8, verified on Xeon; verified again on this processor, which lacks amx_int8"
    plain = {"name": "m-1", "state": "ready"}
    optimized = plain | {"device": {"used": ["CPU"], "optimized": text}}
    revision = {"version": "1", "model": "m:1", "weight": 100}
    revision |= {"replicas": [optimized, optimized, plain]}
    endpoint = {"name": "m", "ready": True, "revisions": [revision]}
    output.show(render({"running": True, "endpoints": [endpoint]}))

    told = " ".join(capsys.readouterr().out.split())
    assert told.count(f"m 1: {text}") == 1


def test_the_status_of_nothing_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    output.show(render({"running": True, "endpoints": [], "addresses": {}}))
    output.show(render({"running": False, "message": "no system runs"}))

    text = capsys.readouterr().out
    assert "no endpoints yet; add some with `headrace apply" in text
    assert "no system runs" in text
