"""Labelled examples from files and folders."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import Array, Datatype, HeadraceError, InvalidArgumentError, ModelSignature
from headrace.optimize.accuracy import DataOptions, Examples, RowTexts, read_labelled, tables
from headrace.optimize.accuracy.examples import first_request, second_request
from tests.tabular_models import library
from tests.unit.optimize.accuracy.signatures import MATRIX, TEXT, TOKENS, of, spec, tokens
from tests.unit.pipeline.conftest import tokenizer_json

parquet = library("pyarrow.parquet", "data")
arrow = library("pyarrow", "data")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tokenizer.json").write_text(tokenizer_json())
    return tmp_path


def read(
    folder: Path,
    name: str,
    content: str | bytes,
    signature: ModelSignature,
    wish: DataOptions | None = None,
) -> Examples:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_labelled(
        path, signature, wish or DataOptions(), tokenizer_path=folder / "model.onnx"
    )


def refused(
    folder: Path,
    name: str,
    content: str | bytes,
    signature: ModelSignature = MATRIX,
    wish: DataOptions | None = None,
) -> str:
    with pytest.raises(InvalidArgumentError) as told:
        read(folder, name, content, signature, wish)
    return str(told.value).replace(f"{folder}/", "")


def labels(examples: Examples) -> list[float]:
    assert examples.labels is not None
    found: list[float] = examples.labels.tolist()
    return found


def ids(examples: Examples) -> list[list[int]]:
    return [one["input_ids"][0].tolist() for one in examples.inputs]


# Texts.


def test_sentences_and_labels_without_names_are_told_apart(folder: Path) -> None:
    found = read(folder, "dev.tsv", 'a river runs\t1\nto the "sea\t0\n\nrain 1\n', TOKENS)

    assert labels(found) == [1, 0, 1]
    assert found.labels is not None
    assert found.labels.dtype == np.int64
    assert ids(found) == [[2, 3, 4], [5, 6, 1], [16]]
    assert found.notes == ("column '1' was taken for the texts",)
    assert found.inputs[0]["attention_mask"].tolist() == [[1, 1, 1]]
    assert found.inputs[0]["token_type_ids"].tolist() == [[0, 0, 0]]


def test_labels_may_all_follow_a_space(folder: Path) -> None:
    found = read(folder, "dev.txt", "a river 1\nthe sea 0\n", TOKENS)

    assert labels(found) == [1, 0]
    assert ids(found) == [[2, 3], [6, 7]]


def test_pairs_with_a_score_are_tokenized_together(folder: Path) -> None:
    found = read(folder, "sts.csv", 'a river,the sea,2.5\n"rain, or",snow,4\n', TOKENS)

    assert labels(found) == [2.5, 4.0]
    assert ids(found)[0] == [2, 3, 6, 7]
    assert found.inputs[0]["token_type_ids"].tolist() == [[0, 0, 1, 1]]
    assert found.notes == ("columns '1' and '2' were taken for pairs of texts",)
    assert found.texts is RowTexts.CROSS_ENCODER


def test_pairs_for_a_model_of_one_text_are_tokenized_apart(folder: Path) -> None:
    wish = DataOptions(is_bi_encoder=True)

    found = read(folder, "sts.tsv", "a river\tthe sea\t2.5\nrain\tsnow\t4\n", TOKENS, wish)

    assert found.texts is RowTexts.BI_ENCODER
    assert labels(found) == [2.5, 4.0]
    assert first_request(found.inputs[0])["input_ids"].tolist() == [[2, 3]]
    assert second_request(found.inputs[0])["input_ids"].tolist() == [[6, 7]]
    assert second_request(found.inputs[0])["token_type_ids"].tolist() == [[0, 0]]
    assert "cosine" in found.notes[1]


def test_single_texts_are_not_taken_apart(folder: Path) -> None:
    found = read(folder, "a.tsv", "a river\t1\nrain\t0\n", TOKENS, DataOptions(is_bi_encoder=True))

    assert found.texts is RowTexts.SINGLE
    assert ids(found) == [[2, 3], [16]]


@pytest.mark.parametrize(
    ("header", "wish"),
    [
        ("sentence\tlabel", DataOptions()),
        ("Text\tY", DataOptions()),
        ("words\tclass", DataOptions()),
        ("words\tscore", DataOptions()),
        ("words\tsentiment", DataOptions(label="sentiment", text="words")),
    ],
)
def test_named_columns_are_found(folder: Path, header: str, wish: DataOptions) -> None:
    found = read(folder, "named.tsv", f"{header}\na river\t1\nthe sea\t0\n", TOKENS, wish)

    assert labels(found) == [1, 0]
    assert ids(found) == [[2, 3], [6, 7]]


def test_numbered_columns_can_be_named(folder: Path) -> None:
    content = "x1\t0\t1\ta river\nx2\t1\t0\tthe sea\n"

    found = read(folder, "cola.tsv", content, TOKENS, DataOptions(label="2", text="4"))

    assert labels(found) == [0, 1]
    assert ids(found) == [[2, 3], [6, 7]]


def test_named_pairs_are_found_among_other_columns(folder: Path) -> None:
    content = "index\tsentence1\tsentence2\tlabel\n1\ta\tthe\tno\n2\tsea\train\tyes\n"

    found = read(folder, "rte.tsv", content, TOKENS)

    assert ids(found) == [[2, 6], [7, 16]]
    assert found.names == ("no", "yes")
    assert labels(found) == [0, 1]


def test_texts_as_labels_are_numbered_as_the_model_does(folder: Path) -> None:
    signature = tokens("input_ids")
    named = of(*signature.inputs, labels={"logits": ("positive", "negative")})
    content = "text\tlabel\na\tnegative\nriver\tpositive\n"

    assert labels(read(folder, "a.tsv", content, signature)) == [0, 1]
    assert labels(read(folder, "b.tsv", content, named)) == [1, 0]


def test_texts_are_cut_and_only_a_fixed_axis_is_padded(folder: Path) -> None:
    content = "a river runs to the sea\t1\nrain\t0\n"

    cut = read(folder, "a.tsv", content, TOKENS, DataOptions(max_length=4))
    fixed = read(
        folder,
        "b.tsv",
        content,
        tokens("input_ids", "input_mask", length=5, datatype=Datatype.INT32),
    )

    assert [len(one) for one in ids(cut)] == [4, 1]
    assert ids(fixed) == [[2, 3, 4, 5, 6], [16, 0, 0, 0, 0]]
    assert fixed.inputs[1]["input_mask"].tolist() == [[1, 0, 0, 0, 0]]
    assert fixed.inputs[1]["input_mask"].dtype == np.int32


def test_a_model_of_one_fixed_request_is_asked_with_its_shape(folder: Path) -> None:
    signature = of(spec("input_ids", 1, 4, datatype=Datatype.INT64), batched=False)

    found = read(folder, "a.tsv", "a river\t1\nrain\t0\n", signature)

    assert not found.batched
    assert found.inputs[0]["input_ids"].tolist() == [[2, 3, 0, 0]]


def test_a_model_that_takes_texts_gets_them(folder: Path) -> None:
    found = read(
        folder, "a.jsonl", '{"text": "a river", "label": 1}\n{"text":"é","label":0}\n', TEXT
    )

    assert [one["text"].tolist() for one in found.inputs] == [[b"a river"], ["é".encode()]]
    assert labels(found) == [1, 0]


def test_texts_without_labels_have_none(folder: Path) -> None:
    found = read(folder, "plain.txt", "a river runs\nto the sea\n", TOKENS)

    assert found.labels is None
    assert ids(found) == [[2, 3, 4], [5, 6, 7]]


def test_without_a_tokenizer_one_is_asked_for(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()

    assert "put the tokenizer.json that it was trained with beside the model" in refused(
        folder, "a.tsv", "a river\t1\n", TOKENS
    )


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.tsv", "a\t1\n\t0\n", "a.tsv, line 2: the text has no tokens"),
        ("a.tsv", "a\t1\nb\t0\t7\n", "a.tsv, line 2: 3 values where there should be 2 (tab sep"),
        ("a.tsv", "text\tlabel\na\t1\nb\t\n", "a.tsv, line 3: no label in column 'label'"),
        ("a.tsv", "text\tlabel\na\t1\nb\tn/a\n", "line 3: label 'n/a' is not a number"),
        ("a.tsv", "text\tlabel\na\tinf\nb\t1\n", "line 2: the label is not a finite number"),
        ("a.tsv", b"a\t1\nb\xff\t0\n", "a.tsv, line 2: not UTF-8 (byte 1); save it as UTF-8"),
        ("a.tsv", "a\t1\n".encode("utf-16"), "a.tsv is UTF-16; save it as UTF-8"),
        ("a.csv", 'text,label\n"a,1\n', "a.csv, line 2: unexpected end of data"),
        ("a.csv", "text,text\na,1\n", "a.csv: two columns are called 'text'"),
        ("a.csv", "text,label,y\na,1,1\n", "'label' and 'y' may be the labels; say which"),
        ("a.csv", "", "a.csv is empty"),
        ("a.csv", "\n\n", "a.csv holds no rows"),
        ("a.csv", "text,label\n", "a.csv holds no rows"),
        ("a.csv", "a,b,c,1\nd,e,f,0\n", "several columns of text (unnamed columns '1', '2'"),
        ("a.csv", "x,label\n1,0\n2,1\n", "no column of text (columns 'x', 'label')"),
        ("a.jsonl", '{"text": "a", "label": 1}\n[1]\n', "a.jsonl, line 2: not a JSON object"),
        ("a.jsonl", '{"text": "a"\n', "a.jsonl, line 1: no JSON: "),
        ("a.jsonl", "[" * 100_000, "a.jsonl, line 1: no JSON: "),
        ("a.jsonl", '{"text": 7, "label": 1}\n', "line 1: column 'text' holds 7"),
        ("a.jsonl", '{"text": "a", "label": [1]}\n', "'label' holds neither numbers nor texts"),
        ("a.xlsx", "PK", "a.xlsx: examples are read from .csv, .tsv"),
    ],
)
def test_what_is_wrong_with_texts_is_said_with_its_line(
    folder: Path, name: str, content: str | bytes, told: str
) -> None:
    assert told in refused(folder, name, content, TOKENS)


def test_a_column_that_is_not_there_is_named_with_those_that_are(folder: Path) -> None:
    content = "text,label\na,1\n"

    for wish in (DataOptions(label="z"), DataOptions(text="z"), DataOptions(text="text,z")):
        assert "no column 'z'" in refused(folder, "a.csv", content, TOKENS, wish)
        assert "'text', 'label'" in refused(folder, "a.csv", content, TOKENS, wish)


# Numbers.


def test_columns_are_the_matrix_in_the_models_order(folder: Path) -> None:
    signature = of(spec("x", -1, 3), columns={"x": ("c", "a", "b")})

    found = read(folder, "t.csv", "a,b,c,target\n1,2,3,0\n4,,6,1\n", signature)

    assert labels(found) == [0, 1]
    assert found.inputs[0]["x"].tolist() == [[3.0, 1.0, 2.0]]
    assert np.isnan(found.inputs[1]["x"][0, 2])
    assert found.inputs[0]["x"].dtype == np.float32
    assert found.notes == ()


def test_columns_that_the_model_does_not_name_keep_the_files_order(folder: Path) -> None:
    found = read(folder, "t.csv", "id;a;b;c;y\n7;1;2;3;0.5\n8;4;5;6;1\n", MATRIX)

    assert labels(found) == [0.5, 1.0]
    assert found.inputs[1]["x"].tolist() == [[4.0, 5.0, 6.0]]
    assert found.notes == (
        "column 'id' was taken for the rows' number, and left out",
        "columns are input 'x' in the file's order: the model names none",
    )


def test_without_names_the_last_column_is_the_label(folder: Path) -> None:
    found = read(folder, "t.csv", "1,2,3,0\n4,5,6,1\n", MATRIX)

    assert labels(found) == [0, 1]
    assert len(found) == 2


def test_inputs_by_name_are_tensors_of_their_own(folder: Path) -> None:
    signature = of(
        spec("user", -1, datatype=Datatype.INT64), spec("seen", -1, -1, datatype=Datatype.INT32)
    )
    rows = [
        {"user": 2**62 + 1, "seen": [1, 2, 3], "label": 1},
        {"user": 5, "seen": [4], "label": 0},
    ]

    found = read(folder, "t.ndjson", "\n".join(map(json.dumps, rows)), signature)

    assert found.inputs[0]["user"].tolist() == [2**62 + 1]
    assert [one["seen"].tolist() for one in found.inputs] == [[[1, 2, 3]], [[4]]]
    assert labels(found) == [1, 0]


def test_cells_by_name_may_be_missing_or_texts(folder: Path) -> None:
    signature = of(
        spec("amount", -1),
        spec("count", -1, 1, datatype=Datatype.INT32),
        spec("shop", -1, datatype=Datatype.BYTES),
    )

    found = read(folder, "t.csv", "amount,count,shop,label\n1.5, 3 ,a,0\n,-4,é,1\n", signature)

    assert found.inputs[0]["amount"].tolist() == [1.5]
    assert np.isnan(found.inputs[1]["amount"][0])
    assert [one["count"].tolist() for one in found.inputs] == [[[3]], [[-4]]]
    assert found.inputs[1]["shop"].tolist() == ["é".encode()]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"a": "x", "t": ["b"]}, "line 1: input 'a': 'x' is no INT32"),
        ({"a": None, "t": ["b"]}, "line 1: input 'a': nan is no INT32"),
        ({"a": 2**40, "t": ["b"]}, "line 1: input 'a': 1.09951e+12 is no INT32"),
        ({"a": 10**40, "t": ["b"]}, "line 1: input 'a'"),
        ({"a": 1, "t": [None]}, "line 1: input 't' takes texts, not None"),
        ({"a": 1, "t": ["b", "c"]}, "line 1: input 't' takes [1] a row, this is [2]"),
        ({"a": [[1], [2, 3]], "t": ["b"]}, "line 1: input 'a': rows differ in length"),
    ],
)
def test_cells_that_do_not_fit_their_input_say_why(
    folder: Path, row: dict[str, object], told: str
) -> None:
    signature = of(
        spec("a", -1, datatype=Datatype.INT32), spec("t", -1, 1, datatype=Datatype.BYTES)
    )

    assert told in refused(folder, "t.jsonl", json.dumps(row), signature)


def test_too_many_different_texts_are_no_classes(folder: Path) -> None:
    content = "text\tlabel\n" + "".join(f"a\tname {i}\n" for i in range(30))

    assert "30 different texts in 30 rows, too many for classes" in refused(
        folder, "t.tsv", content, TOKENS
    )


def test_a_model_of_one_text_takes_no_pairs(folder: Path) -> None:
    assert "takes one text a row, not '1' and '2'" in refused(folder, "t.csv", "a,b,1\n", TEXT)


def test_a_file_that_is_not_there_is_said(folder: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"there is no .*none\.csv"):
        read_labelled(folder / "none.csv", MATRIX, DataOptions(), tokenizer_path=folder)


def test_rows_that_fill_the_memory_stop_the_reading(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "MAX_CACHED_BYTES", 1_000)

    assert "set a smaller limit of examples" in refused(folder, "t.csv", "1,2,3,0\n" * 40)
    assert len(read(folder, "t.csv", "1,2,3,0\n" * 40, MATRIX, DataOptions(limit=3))) == 3


def test_parquet_keeps_its_types(folder: Path) -> None:
    table = arrow.table({"x": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], "label": [True, False]})
    parquet.write_table(table, folder / "t.parquet")

    found = read_labelled(folder / "t.parquet", MATRIX, DataOptions(), tokenizer_path=folder)

    assert found.inputs[1]["x"].tolist() == [[4.0, 5.0, 6.0]]
    assert labels(found) == [1, 0]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            "a,b,y\n1,2,0\n",
            "takes 3 numbers per row, and t.csv has 2 columns for it (column 'y' is",
        ),
        ("a,b,c,d\n1,2,3,4\n", "has 4 columns for it (no column was taken as the label;"),
        ("a,b,c,y\n1,x,3,0\n", "t.csv, line 2: column 'b': 'x' is no FP32"),
    ],
)
def test_a_matrix_that_does_not_fit_says_what_would(folder: Path, content: str, told: str) -> None:
    assert told in refused(folder, "t.csv", content)


def test_whole_numbers_are_asked_of_a_model_of_whole_numbers(folder: Path) -> None:
    signature = of(spec("x", -1, 2, datatype=Datatype.UINT8))

    assert "column 'b': nothing is no UINT8" in refused(folder, "a.csv", "a,b,y\n1,,0\n", signature)
    assert "256 is no UINT8" in refused(folder, "b.csv", "a,b,y\n1,256,0\n", signature)
    assert "1.5 is no UINT8" in refused(folder, "c.csv", "a,b,y\n1,1.5,0\n", signature)


def test_a_missing_input_of_several_is_named(folder: Path) -> None:
    signature = of(spec("a", -1, 2), spec("b", -1, 2))

    assert "has no column for input b" in refused(folder, "t.csv", "a,y\n1,2\n", signature)


def test_a_damaged_parquet_file_is_refused(folder: Path) -> None:
    assert "cannot be read as Parquet" in refused(folder, "t.parquet", b"PAR1" + b"\0" * 40)


# Samples.


@pytest.mark.parametrize("name", ["t.csv", "t.parquet", "t.npz"])
def test_a_limit_draws_the_same_sample_every_time(folder: Path, name: str) -> None:
    x, y = np.arange(900.0).reshape(300, 3), np.arange(300)
    if name == "t.csv":
        rows = [",".join(map(str, [*row, label])) for row, label in zip(x, y, strict=True)]
        (folder / name).write_text("a,b,c,y\n" + "\n".join(rows))
    elif name == "t.npz":
        np.savez(folder / name, x=x, y=y)
    else:
        parquet.write_table(
            arrow.table({"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "y": y}), folder / name
        )

    found, again = (
        read_labelled(folder / name, MATRIX, DataOptions(limit=40), tokenizer_path=folder)
        for _ in range(2)
    )

    assert len(found) == 40
    assert found.sha256() == again.sha256()
    assert labels(found) == sorted(set(labels(found)))
    assert [one["x"][0, 0] for one in found.inputs] == [3 * label for label in labels(found)]
    assert max(labels(found)) > 200
    assert "40 of 300 rows, drawn at random, the same every time" in found.notes


def test_no_examples_at_all_are_no_wish(folder: Path) -> None:
    assert "a limit of 0 examples is too small" in refused(
        folder, "t.csv", "a,b,c,y\n1,2,3,0\n", wish=DataOptions(limit=0)
    )


def test_a_file_that_is_too_large_is_not_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "MAX_FILE_BYTES", 10)

    assert "give a sample of it" in refused(folder, "t.csv", "a,b,c,y\n1,2,3,0\n")


def test_an_endless_line_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_LINE_BYTES", 100)

    assert "line 1: longer than" in refused(folder, "t.csv", "1," * 400)


# Fuzzed.


@given(
    st.sampled_from([".csv", ".tsv", ".jsonl", ".npz", ".parquet", ".txt"]), st.binary(max_size=200)
)
def test_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, content: bytes
) -> None:
    folder = tmp_path_factory.mktemp("fuzz", numbered=True)
    (folder / "tokenizer.json").write_text(tokenizer_json())
    path = folder / f"f{suffix}"
    path.write_bytes(content)

    for signature in (MATRIX, TOKENS, TEXT):
        try:
            found = read_labelled(path, signature, DataOptions(), tokenizer_path=folder)
        except HeadraceError as error:
            told = str(error)
        else:
            told = f"{path}" if len(found) else ""
        assert path.name in told


CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\t\0"), min_size=1)


@given(st.lists(st.tuples(CELLS, st.integers(0, 3)), min_size=1, max_size=8))
def test_texts_and_labels_come_back_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, int]]
) -> None:
    path = tmp_path_factory.mktemp("texts", numbered=True) / "t.tsv"
    path.write_text(
        "text\tlabel\n" + "".join(f"{t}\t{y}\n" for t, y in rows), encoding="utf-8", newline=""
    )

    found = read_labelled(path, TEXT, DataOptions(text="text"), tokenizer_path=path)

    assert [one["text"][0].decode() for one in found.inputs] == [text for text, _ in rows]
    assert labels(found) == [label for _, label in rows]


def saved(tmp_path: Path, **arrays: Array) -> Path:
    path = tmp_path / "data.npz"
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]  # its stub takes a flag by name
    return path


def read_numpy(path: Path, wish: DataOptions | None = None) -> Examples:
    return read_labelled(path, MATRIX, wish or DataOptions(), tokenizer_path=path)


def test_arrays_named_like_inputs_are_the_examples(tmp_path: Path) -> None:
    x = np.arange(12, dtype=np.float64).reshape(4, 3)

    found = read_numpy(saved(tmp_path, x=x, labels=np.array([0, 1, 1, 0]), other=np.zeros(2)))

    assert found.labels is not None
    assert found.labels.tolist() == [0, 1, 1, 0]
    assert found.inputs[2]["x"].tolist() == [[6.0, 7.0, 8.0]]
    assert found.inputs[2]["x"].dtype == np.float32


def test_labels_may_have_any_name_and_be_texts(tmp_path: Path) -> None:
    path = saved(tmp_path, x=np.zeros((3, 3)), kind=np.array(["b", "a", "b"]))

    found = read_numpy(path, DataOptions(label="kind"))

    assert found.names == ("a", "b")
    assert found.labels is not None
    assert found.labels.tolist() == [1, 0, 1]
    assert read_numpy(path).labels is None


def test_a_model_without_a_batch_axis_gets_rows_of_its_shape(tmp_path: Path) -> None:
    signature = of(spec("x", 1, 2, 2), batched=False)
    path = saved(tmp_path, x=np.arange(12.0).reshape(3, 2, 2), y=np.arange(3) * 0.5)

    found = read_labelled(path, signature, DataOptions(), tokenizer_path=path)

    assert found.inputs[1]["x"].tolist() == [[[4.0, 5.0], [6.0, 7.0]]]
    assert found.labels is not None
    assert found.labels.dtype == np.float64


def test_flat_rows_take_the_inputs_shape(tmp_path: Path) -> None:
    signature = of(spec("x", -1, 1, 2, 2))
    path = saved(tmp_path, x=np.arange(8.0).reshape(2, 4))

    found = read_labelled(path, signature, DataOptions(), tokenizer_path=path)

    assert found.inputs[1]["x"].tolist() == [[[[4.0, 5.0], [6.0, 7.0]]]]


def test_texts_are_bytes(tmp_path: Path) -> None:
    path = saved(tmp_path, text=np.array(["a", "é"]), y=np.array([0, 1]))

    found = read_labelled(path, TEXT, DataOptions(), tokenizer_path=path)

    assert found.inputs[1]["text"].tolist() == ["é".encode()]


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"z": np.zeros((2, 3))}, "has no array 'x', only z; name arrays as inputs"),
        ({"x": np.zeros((2, 3)), "y": np.zeros(3)}, "different numbers of rows: x 2, y 3"),
        ({"x": np.zeros((0, 3))}, "no or different numbers of rows: x 0"),
        ({"x": np.array(1.0)}, "no or different numbers of rows: x 0"),
        ({"x": np.zeros((2, 4))}, "input 'x' takes [3] a row, this is [4]"),
        ({"x": np.zeros((2, 3), complex)}, "input 'x' takes FP32, not complex128"),
        ({"x": np.zeros((2, 3)), "y": np.zeros((2, 2))}, "give one number a row"),
        ({"x": np.zeros((2, 3)), "y": np.array([0, np.nan])}, "label 1 (from 0) is not a finite"),
        ({"x": np.full((2, 3), 1e300)}, "input 'x': 1e+300 is no FP32"),
        ({"x": np.zeros((2, 3)), "y": np.zeros(2), "label": np.zeros(2)}, "say which"),
    ],
)
def test_arrays_that_do_not_fit_say_why(
    tmp_path: Path, arrays: dict[str, Array], told: str
) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        read_numpy(saved(tmp_path, **arrays))

    assert told in str(error.value)
    assert "data.npz" in str(error.value)


def test_a_wished_array_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="has no array 'z', only x"):
        read_numpy(saved(tmp_path, x=np.zeros((1, 3))), DataOptions(label="z"))


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    path = saved(tmp_path, x=np.array([[1, "a", None]], np.object_))

    with pytest.raises(InvalidArgumentError, match="Python objects; save texts as"):
        read_numpy(path)


def test_texts_for_numbers_are_refused_and_numbers_for_texts(tmp_path: Path) -> None:
    path = saved(tmp_path, x=np.array([["a", "b", "c"]]), text=np.zeros(1))

    with pytest.raises(InvalidArgumentError, match="takes FP32, not <U1"):
        read_numpy(path)
    with pytest.raises(InvalidArgumentError, match="takes texts, not float64"):
        read_labelled(path, TEXT, DataOptions(), tokenizer_path=path)


@pytest.mark.parametrize(
    "member", [b"", b"\x93NUMPY\x01\x00", b"not an array", b"\x93NUMPY\x09\x00v"]
)
def test_members_that_are_no_arrays_are_refused(tmp_path: Path, member: bytes) -> None:
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", member)

    with pytest.raises(InvalidArgumentError, match=r"data\.npz cannot be read"):
        read_numpy(path)


def test_an_array_that_says_to_be_larger_than_it_is_takes_no_memory(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (10**12, 3)}
    )
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", header.getvalue() + b"\0" * 64)

    with pytest.raises(InvalidArgumentError, match="declares more data than the file holds"):
        read_numpy(path)


def test_whole_numbers_for_a_model_of_whole_numbers_have_to_fit(tmp_path: Path) -> None:
    signature = of(spec("x", -1, 1, datatype=Datatype.INT8))
    path = saved(tmp_path, x=np.array([[300]]))

    with pytest.raises(InvalidArgumentError, match="input 'x': 300 is no INT8"):
        read_labelled(path, signature, DataOptions(), tokenizer_path=path)


PICTURES = of(spec("image", -1, datatype=Datatype.BYTES), labels={"logits": ("dog", "cat")})


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name in ("cat/1.jpg", "cat/2.PNG", "dog/1.jpg", "dog/notes.txt", "stray.jpg"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path


def test_folders_are_the_labels_of_their_pictures(pictures: Path) -> None:
    found = read_labelled(pictures, PICTURES, DataOptions(), tokenizer_path=pictures)

    assert [one["image"].tolist() for one in found.inputs] == [
        [b"cat/1.jpg"],
        [b"cat/2.PNG"],
        [b"dog/1.jpg"],
    ]
    assert found.names == ("dog", "cat")
    assert found.labels is not None
    assert found.labels.tolist() == [1, 1, 0]


def test_a_limit_draws_some(pictures: Path) -> None:
    found = read_labelled(pictures, PICTURES, DataOptions(limit=2), tokenizer_path=pictures)

    assert len(found) == 2
    assert found.notes == ("2 of 3 pictures, drawn at random, the same every time",)


def test_a_model_of_tensors_is_told_what_to_give(pictures: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"give the tensors that it takes in an \.npz"):
        read_labelled(pictures, MATRIX, DataOptions(), tokenizer_path=pictures)


def test_a_folder_without_pictures_says_how_they_should_lie(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"cat/1\.jpg"):
        read_labelled(tmp_path, PICTURES, DataOptions(), tokenizer_path=tmp_path)
