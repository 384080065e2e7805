import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from headrace.core import (
    CodeNotAllowedError,
    Datatype,
    FailedPreconditionError,
    RuntimeFailedError,
    UnsupportedModelError,
)
from headrace.runtimes import LoadOptions, detect_runtime, inspect_model, load_model
from headrace.runtimes.tensorflow.savedmodel import SavedmodelRuntime
from headrace.runtimes.tensorflow.savedmodel_file import looks_like_savedmodel, read_savedmodel
from tests import openvino_models
from tests.savedmodels import (
    DEFAULT,
    PERCEPTRON,
    call,
    entry,
    expected,
    field,
    function,
    graph,
    index,
    node,
    number,
    shape,
    signature,
    tensor,
    variable,
    write,
)

ROUNDING = 1e-6


@pytest.fixture
def by_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if TensorFlow were not installed."""
    openvino_models.library()
    monkeypatch.setitem(sys.modules, "tensorflow", None)


def test_the_signature_is_read_without_tensorflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    monkeypatch.setitem(sys.modules, "openvino", None)
    path = write(tmp_path)
    inputs, outputs = read_savedmodel(path).specs(path)

    assert [(one.name, one.datatype, one.shape) for one in (*inputs, *outputs)] == [
        ("x", Datatype.FP32, (-1, 4)),
        ("y", Datatype.FP32, (-1, 3)),
    ]


@pytest.mark.usefixtures("by_openvino")
def test_answers_are_those_of_the_same_sums_in_numpy(tmp_path: Path) -> None:
    path = write(tmp_path)
    rows = np.random.default_rng(8).normal(size=(6, 4)).astype(np.float32)

    assert detect_runtime(path).name == "savedmodel"
    answer = load_model(path).run({"x": rows})["y"]
    assert np.abs(answer - expected(rows)).max() < ROUNDING


def test_without_either_library_it_names_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    monkeypatch.setitem(sys.modules, "openvino", None)

    with pytest.raises(
        FailedPreconditionError, match=r"headrace\[tensorflow\].*headrace\[openvino\]"
    ):
        SavedmodelRuntime().load(write(tmp_path), LoadOptions())


@pytest.mark.usefixtures("by_openvino")
def test_what_openvino_cannot_run_says_so(tmp_path: Path) -> None:
    nodes = [*PERCEPTRON[:-1], node("soft", "Cheese", "sum")]

    with pytest.raises(UnsupportedModelError, match=r"OpenVINO .*Cheese"):
        SavedmodelRuntime().load(write(tmp_path, graph(nodes)), LoadOptions())


@pytest.mark.usefixtures("by_openvino")
def test_two_names_of_one_output_need_tensorflow(tmp_path: Path) -> None:
    same = tensor("soft:0", -1, 3)
    made = signature({"x": tensor("ask_x:0", -1, 4)}, {"a": same, "b": same})
    path = write(tmp_path, graph(signatures={"serving_default": made}))

    with pytest.raises(
        UnsupportedModelError, match=r"does not keep its outputs [ab]; install headrace\[tens"
    ):
        load_model(path)


@pytest.mark.usefixtures("by_openvino")
def test_an_input_that_nothing_reads_is_taken(tmp_path: Path) -> None:
    spare = node("spare", "Placeholder", dtype=number(6, 1), shape=field(7, shape(-1, 4)))
    asked = {"x": tensor("ask_x:0", -1, 4), "z": tensor("spare:0", -1, 4)}
    made = signature(asked, {"y": tensor("soft:0", -1, 3)})
    path = write(tmp_path, graph([*PERCEPTRON, spare], signatures={"serving_default": made}))
    model = load_model(path)

    assert [spec.name for spec in model.signature.inputs] == ["x", "z"]


def test_a_model_that_carries_its_python_is_not_claimed(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert looks_like_savedmodel(path)
    (path / "model.py").write_text("")

    assert not looks_like_savedmodel(path)
    assert not looks_like_savedmodel(path / "saved_model.pb")


REACH = [
    *("ReadFile", "WriteFile", "MatchingFiles", "PyFunc", "EagerPyFunc", "PyFuncStateless"),
    *("TextLineDataset", "TFRecordReaderV2", "CreateSummaryFileWriter", "RpcCall", "PrintV2"),
    *("ImmutableConst", "LoadAndRemapMatrix", "InitializeTableFromTextFileV2", "DebugIdentityV2"),
    *("DecodeProtoV2", "RemoteCall", "Skipgram", "SaveDataset", "SqlDataset", "_HostRecv"),
]
HARMLESS = [
    *("ReadVariableOp", "RngReadAndSkip", "ScatterNd", "ShardedFilename", "XlaCallModule"),
    *("StatefulPartitionedCall", "LookupTableFindV2", "BoostedTreesMakeStatsSummary", "Print"),
    *("DebugGradientIdentity", "FixedUnigramCandidate", "ResourceGather", "Recvary"),
]


@pytest.mark.parametrize("operator", REACH)
@pytest.mark.parametrize("where", ["graph", "function"])
def test_operators_that_reach_beyond_the_graph_are_named(
    operator: str, where: str, tmp_path: Path
) -> None:
    lone = node("lone", operator)
    found = (
        graph([*PERCEPTRON, lone])
        if where == "graph"
        else graph(functions=[function("unused", lone)])
    )

    assert read_savedmodel(write(tmp_path, found)).unsafe == (operator,)


@pytest.mark.parametrize("operator", HARMLESS)
def test_operators_that_stay_within_are_not(operator: str, tmp_path: Path) -> None:
    assert read_savedmodel(write(tmp_path, graph([*PERCEPTRON, node("a", operator)]))).unsafe == ()


SAVER = ("write", "^read")
STORE = (node("write", "Outer", f=call("store")), node("read", "RestoreV2"))
STORING = (
    function("store", node("a", "Inner", f=call("deep"))),
    function("deep", node("b", "SaveV2")),
)


def test_storing_variables_is_harmless_where_only_the_saver_does_it(tmp_path: Path) -> None:
    path = write(tmp_path, graph([*PERCEPTRON, *STORE], STORING, saver=SAVER))

    assert read_savedmodel(path).unsafe == ()


@pytest.mark.parametrize(
    ("nodes", "more"),
    [
        ([*PERCEPTRON[:3], node("soft", "deep", "sum"), *STORE], b""),
        ([*PERCEPTRON[:3], node("soft", "If", "sum", then=call("deep")), *STORE], b""),
        ([*PERCEPTRON[:3], node("soft", "Softmax", "sum", "^write"), *STORE], b""),
        (
            [*PERCEPTRON, *STORE],
            field(4, entry("saved_model_main_op", field(1, field(1, "write")))),
        ),
        (
            [*PERCEPTRON, *STORE],
            field(5, entry("__saved_model_init_op", signature({}, {"": tensor("write")}))),
        ),
        (
            [*PERCEPTRON, *STORE],
            field(4, field(1, "other") + entry("saved_model_main_op", field(1, field(1, "write")))),
        ),
        (
            [*PERCEPTRON, *STORE],
            field(4, entry("saved_model_main_op", field(1, field(1, "write"))) + field(2, "")),
        ),
    ],
    ids=[
        "called",
        "in an attribute",
        "by control",
        "at the start",
        "at the start of 2",
        "at the start by the last key",
        "at the start by the first value",
    ],
)
def test_storing_where_requests_or_the_start_reach_it_is_not(
    nodes: Sequence[bytes], more: bytes, tmp_path: Path
) -> None:
    path = write(tmp_path, graph(nodes, STORING, saver=SAVER, more=more))

    assert read_savedmodel(path).unsafe == ("SaveV2",)


def test_storing_that_nothing_asks_for_is_not_trusted(tmp_path: Path) -> None:
    path = write(tmp_path, graph(functions=STORING))

    assert read_savedmodel(path).unsafe == ("SaveV2",)


@pytest.mark.parametrize(
    ("operator", "found"),
    [
        ("AssignVariableOp", ("AssignVariableOp",)),
        ("ResourceScatterUpdate", ("ResourceScatterUpdate",)),
        ("QueueEnqueueV2", ("QueueEnqueueV2",)),
        ("ReadVariableOp", ()),
        ("ScatterNd", ()),
        ("TensorArrayWriteV3", ()),
    ],
)
def test_a_state_is_told_where_requests_reach_it(
    operator: str, found: tuple[str, ...], tmp_path: Path
) -> None:
    inner = [function("f", node("a", operator))]
    unreached = graph([*PERCEPTRON, node("lone", "f")], inner)
    reached = graph([*PERCEPTRON[:3], node("soft", "f", "sum")], inner)

    assert read_savedmodel(write(tmp_path / "a", unreached)).assigns == ()
    assert read_savedmodel(write(tmp_path / "b", reached)).assigns == found


@pytest.mark.usefixtures("by_openvino")
def test_a_graph_that_reads_files_needs_the_allow(tmp_path: Path) -> None:
    path = write(tmp_path, graph([*PERCEPTRON, node("lone", "ReadFile")]))
    with pytest.raises(CodeNotAllowedError, match=r"\(ReadFile\); if you trust the author"):
        inspect_model(path)

    with pytest.raises(UnsupportedModelError, match="does not support its operators ReadFile"):
        inspect_model(path, allow_code=True)


@pytest.mark.usefixtures("by_openvino")
def test_one_that_does_not_needs_none(tmp_path: Path) -> None:
    assert inspect_model(write(tmp_path)).runs_code is False


def _tower(height: int) -> list[bytes]:
    """Functions of which each calls the next one twice."""
    return [
        function(
            f"f{i}",
            node("a", "PartitionedCall", f=call(f"f{i + 1}")),
            node("b", "PartitionedCall", f=call(f"f{i + 1}")),
        )
        for i in range(height)
    ]


def _chain(length: int) -> list[bytes]:
    return [function(f"f{i}", node("a", "Call", f=call(f"f{i + 1}"))) for i in range(length)]


def _nested(depth: int) -> bytes:
    value = field(1, "f")
    for _ in range(depth):
        value = field(1, "f") + field(2, entry("f", field(10, value)))
    return field(10, value)


def _twice(size: int) -> bytes:
    """A tensor whose shape stands there twice; protobuf joins the two."""
    return field(8, field(2, shape(size)) + field(2, shape(size)))


def _second(size: int) -> bytes:
    """A tensor with two sizes of its only dimension, of which protobuf takes the last."""
    return field(8, field(2, field(2, number(1, 1) + number(1, size))))


def _huge(*sizes: int) -> bytes:
    return field(8, number(1, 1) + field(2, shape(*sizes)) + field(5, b"\0\0\0\0"))


DAMAGED: dict[str, tuple[Callable[[], bytes], str]] = {
    "no tag": (
        lambda: graph(tag="train"),
        r"0 graphs with the tag 'serve' \(its graphs: 'train'\)",
    ),
    "no signature": (lambda: graph(signatures={}), "no signature 'serving_default'"),
    "two signatures": (
        lambda: graph(
            signatures={"a": DEFAULT["serving_default"], "b": DEFAULT["serving_default"]}
        ),
        r"it has a, b",
    ),
    "no such tensor": (lambda: graph(PERCEPTRON[:-1]), "its tensor 'y' does not exist"),
    "calls itself": (
        lambda: graph(functions=[function("f", node("a", "f"))]),
        "function 'f' calls itself",
    ),
    "circle": (
        lambda: graph(functions=[*_chain(3), function("f3", node("a", "f0"))]),
        "calls itself",
    ),
    "growth": (lambda: graph(functions=_tower(60)), "expand to more than"),
    "growth in the graph": (
        lambda: graph([*PERCEPTRON, *(node(f"n{i}", "f0") for i in range(9))], _tower(21)),
        "expand to more than",
    ),
    "depth": (lambda: graph(functions=_chain(300)), "more than 200 levels deep"),
    "nested attributes": (
        lambda: graph([*PERCEPTRON, node("a", "Call", f=_nested(50))]),
        "too deeply",
    ),
    "huge constant": (
        lambda: graph([*PERCEPTRON, node("a", "Const", value=_huge(1 << 20, 1 << 20))]),
        "a constant has the shape",
    ),
    "huge constant in a list": (
        lambda: graph([*PERCEPTRON, node("a", "Const", value=field(1, _huge(1 << 40)))]),
        "a constant has the shape",
    ),
    "huge constant in two parts": (
        lambda: graph([*PERCEPTRON, node("a", "Const", value=_twice(1 << 20))]),
        "a constant has the shape",
    ),
    "huge constant behind a small one": (
        lambda: graph([*PERCEPTRON, node("a", "Const", value=_second(1 << 40))]),
        "a constant has the shape",
    ),
    "negative constant": (
        lambda: graph([*PERCEPTRON, node("a", "Const", value=_huge(-1, 4))]),
        "a constant has the shape",
    ),
    "negative shape": (
        lambda: graph(
            signatures={"a": signature({"x": tensor("ask_x:0", -7)}, {"y": tensor("soft:0")})}
        ),
        r"declares the invalid shape \[-7\]",
    ),
    "a number for a graph": (lambda: number(2, 7), "a number where a message should be"),
}


@pytest.mark.parametrize(("made", "reason"), DAMAGED.values(), ids=DAMAGED)
def test_what_is_damaged_or_grows_is_refused(
    made: Callable[[], bytes], reason: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "odd", made())

    with pytest.raises(UnsupportedModelError, match=f"odd: saved_model.pb .*{reason}"):
        read_savedmodel(path)


UNSERVED: dict[str, tuple[bytes, str]] = {
    "sparse": (field(4, b""), "input 'x' is sparse"),
    "complex": (
        tensor("ask_x:0", -1, 4, kind=8),
        "input 'x' has a type that a request cannot carry",
    ),
    "no rank": (
        field(1, "ask_x:0") + number(2, 1) + field(3, number(3, 1)),
        "an unknown number of dimensions",
    ),
}


@pytest.mark.parametrize(("x", "reason"), UNSERVED.values(), ids=UNSERVED)
def test_what_no_request_can_carry_is_refused(x: bytes, reason: str, tmp_path: Path) -> None:
    made = graph(signatures={"a": signature({"x": x}, {"y": tensor("soft:0", -1, 3)})})
    path = write(tmp_path, made)

    with pytest.raises(UnsupportedModelError, match=reason):
        read_savedmodel(path).specs(path)


@pytest.mark.parametrize("size", range(2, 300, 17))
def test_a_file_that_is_cut_off_is_refused(size: int, tmp_path: Path) -> None:
    path = write(tmp_path)
    file = path / "saved_model.pb"
    file.write_bytes(file.read_bytes()[:size])

    with pytest.raises(UnsupportedModelError, match=r"saved_model\.pb"):
        read_savedmodel(path)


def test_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(b"hello")

    with pytest.raises(UnsupportedModelError, match="is not a SavedModel"):
        read_savedmodel(tmp_path)


def test_links_that_lead_out_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "model")
    (path / "assets").mkdir()
    (path / "assets" / "words.txt").symlink_to("/etc/hostname")

    with pytest.raises(UnsupportedModelError, match=r"assets/words\.txt is a link"):
        read_savedmodel(path)


def stored(folder: Path, content: bytes, *, size: int = 64, shards: int = 1) -> Path:
    """A SavedModel whose variables have this index."""
    path = write(folder)
    (path / "variables").mkdir()
    (path / "variables" / "variables.index").write_bytes(content)
    for i in range(shards):
        (path / "variables" / f"variables.data-{i:05d}-of-{shards:05d}").write_bytes(bytes(size))
    return path


WHOLE = index({"a": variable(0, 48, 4, 3), "b": variable(48, 16, 4)})


def test_variables_within_their_files_are_taken(tmp_path: Path) -> None:
    assert read_savedmodel(stored(tmp_path, WHOLE)).unsafe == ()


VARIABLES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is truncated"),
    "cut off": (WHOLE[:-3], "does not end as a table"),
    "no header": (index({})[:0] + index({}, header=b""), "has 0 files"),
    "many shards": (index({}, header=number(1, 1 << 40)), "has 1099511627776 files"),
    "other byte order": (index({}, header=number(1, 1) + number(2, 1)), "another byte order"),
    "another file": (index({"a": variable(0, 4, 1, shard=3)}), "ends beyond its file"),
    "missing file": (index({}, header=number(1, 2)), "which does not exist"),
    "beyond the end": (index({"a": variable(60, 8, 2)}), "ends beyond its file"),
    "far beyond": (index({"a": variable((1 << 64) - 1, 8, 2)}), "ends beyond its file"),
    "other size": (index({"a": variable(0, 8, 3)}), r"a variable \[3\] of 8 bytes"),
    "negative": (index({"a": variable(0, 8, -2)}), "of the shape"),
    "unknown type": (index({"a": variable(0, 8, 2, kind=77)}), "of the type 77"),
    "many texts": (index({"a": variable(0, 8, 1000, kind=7)}), "1000 texts in 8 bytes"),
    "texts beyond": (index({"a": variable(0, 8, 2, kind=7)}), "end beyond their bytes"),
    "compressed": (WHOLE.replace(bytes([1, 0, 0, 0, 0]), bytes([1, 0, 0, 0, 1]), 1), "compressed"),
    "entry": (WHOLE.replace(b"\0\1", b"\0\x7f", 1), "beyond its block|damaged"),
}


@pytest.mark.parametrize(("content", "reason"), VARIABLES.values(), ids=VARIABLES)
def test_variables_that_lie_elsewhere_are_refused(
    content: bytes, reason: str, tmp_path: Path
) -> None:
    path = stored(tmp_path, content)

    with pytest.raises(UnsupportedModelError, match=rf"variables/variables\.index .*({reason})"):
        read_savedmodel(path)


def test_a_missing_part_of_the_variables_is_named(tmp_path: Path) -> None:
    path = stored(tmp_path, index({}, header=number(1, 2)), shards=2)
    (path / "variables" / "variables.data-00001-of-00002").unlink()
    with pytest.raises(UnsupportedModelError, match="1 of 2 files"):
        read_savedmodel(path)

    (path / "variables" / "variables.index").unlink()
    with pytest.raises(UnsupportedModelError, match=r"variables\.index does not exist"):
        read_savedmodel(path)


@pytest.mark.usefixtures("by_openvino")
def test_a_closed_model_says_so(tmp_path: Path) -> None:
    model = load_model(write(tmp_path))
    model.close()

    with pytest.raises(RuntimeFailedError, match="closed"):
        model.run({"x": np.ones((1, 4), np.float32)})
