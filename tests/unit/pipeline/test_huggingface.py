"""Hugging Face folders are pipelines: task, labels and steps come from their JSON files."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from headrace.core import Array, CodeNotAllowedError, FailedPreconditionError, UnsupportedModelError
from headrace.core.encoders import TOKEN_COUNT, EncoderTask, encoder_task
from headrace.pipeline.classify import softmax
from headrace.pipeline.huggingface import image_spec
from headrace.runtimes import detect_runtime, inspect_model, load_model
from headrace.runtimes.huggingface import HubFolder, HubTask
from tests import hub_folders
from tests.unit.pipeline.elements import elements, one_by_one

Expected = Callable[[Array], Array]
LABELS = ("O", "B-PER", "I-PER", "B-LOC")
TEXTS = ("Anna Smith lives in Berlin", "a", "a b a b a b", "")


def ids(text: str) -> list[int]:
    words = [word if word in hub_folders.WORDS else "[UNK]" for word in text.lower().split()]
    return [hub_folders.WORDS.index(word) for word in ("[CLS]", *words, "[SEP]")]


def mean_scores(text: str, size: int) -> Array:
    mean: Array = hub_folders.table(size)[ids(text)].mean(axis=0)
    return mean


@pytest.mark.parametrize("onnx_file", ["model.onnx", "onnx/model.onnx"])
def test_text_classification_returns_the_best_label_of_each_text(
    onnx_file: str, tmp_path: Path
) -> None:
    model = load_model(hub_folders.write_text(tmp_path / "mood", onnx_file=onnx_file))

    answer = model.run({"text": elements(*TEXTS)})

    scores = softmax(np.stack([mean_scores(text, 3) for text in TEXTS]))
    best = scores.argmax(axis=1)
    assert [label.decode() for label in answer["label"]] == [("bad", "ok", "good")[i] for i in best]
    np.testing.assert_allclose(answer["score"], scores.max(axis=1), atol=1e-6)
    model.close()


def test_multi_label_classification_returns_the_sigmoid_of_every_label(tmp_path: Path) -> None:
    folder = hub_folders.write_text(tmp_path / "mood", problem_type="multi_label_classification")
    model = load_model(folder)

    answer = model.run({"text": elements(*TEXTS)})

    for row, text in enumerate(TEXTS):
        scores = 1 / (1 + np.exp(-mean_scores(text, 3)))
        order = np.argsort(-scores)
        assert [label.decode() for label in answer["labels"][row]] == [
            ("bad", "ok", "good")[i] for i in order
        ]
        np.testing.assert_allclose(answer["scores"][row], scores[order], atol=1e-6)
    model.close()


@pytest.mark.parametrize(
    ("config", "labels", "expected"),
    [
        ({"problem_type": "regression"}, ("value",), lambda x: x),
        ({}, ("relevant",), lambda x: 1 / (1 + np.exp(-x))),
    ],
)
def test_a_single_label_is_a_number_or_a_sigmoid(
    config: dict[str, Any], labels: tuple[str, ...], expected: Expected, tmp_path: Path
) -> None:
    model = load_model(hub_folders.write_text(tmp_path / "one", labels=labels, **config))

    answer = model.run({"text": elements("a b")})

    np.testing.assert_allclose(answer["score"], expected(mean_scores("a b", 1)), rtol=1e-6)
    model.close()


def test_token_classification_returns_entities_with_their_characters(tmp_path: Path) -> None:
    folder = hub_folders.write_text(tmp_path / "ner", "BertForTokenClassification", labels=LABELS)
    model = load_model(folder)

    answer = model.run({"text": elements(*TEXTS)})

    scores = softmax(hub_folders.table(len(LABELS)))
    # Word i has the label i % 4 in the table: smith B-PER, lives I-PER, in B-LOC, the others O.
    word = hub_folders.WORDS.index
    assert json.loads(answer["entities"][0]) == [
        {
            "entity_group": "PER",
            "score": pytest.approx(
                float((scores[word("smith"), 1] + scores[word("lives"), 2]) / 2), abs=1e-6
            ),
            "word": "Smith lives",
            "start": 5,
            "end": 16,
        },
        {
            "entity_group": "LOC",
            "score": pytest.approx(float(scores[word("in"), 3]), abs=1e-6),
            "word": "in",
            "start": 17,
            "end": 19,
        },
    ]
    assert json.loads(answer["entities"][3]) == []
    alone = one_by_one(model, {"text": elements(*TEXTS)})["entities"]
    assert alone.tolist() == answer["entities"].tolist()
    model.close()


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        (None, lambda rows: rows.mean(axis=0)),
        ({"pooling_mode_cls_token": True}, lambda rows: rows[0]),
        ({"pooling_mode_max_tokens": True}, lambda rows: rows.max(axis=0)),
        (
            {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False},
            lambda rows: rows.mean(axis=0),
        ),
        ({"pooling_mode": "cls"}, lambda rows: rows[0]),
    ],
)
@pytest.mark.parametrize("output", ["last_hidden_state", "token_embeddings"])
def test_feature_extraction_pools_as_sentence_transformers_is_told(
    pooling: dict[str, Any] | None, expected: Expected, output: str, tmp_path: Path
) -> None:
    folder = hub_folders.write_text(tmp_path / "vectors", "BertModel", output=output)
    if pooling is not None:
        modules = [
            {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            {"idx": 2, "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
        ]
        hub_folders.write_json(folder, "modules.json", modules)
        hub_folders.write_json(folder, "1_Pooling/config.json", pooling)
    model = load_model(folder)

    answer = model.run({"text": elements(*TEXTS)})

    for row, text in enumerate(TEXTS):
        vector = expected(hub_folders.table(3)[ids(text)])
        if pooling is not None:
            vector = vector / np.linalg.norm(vector)
        np.testing.assert_allclose(answer["embedding"][row], vector, atol=1e-6)
    model.close()


def test_an_export_that_pools_itself_is_not_pooled_again(tmp_path: Path) -> None:
    folder = hub_folders.write_text(tmp_path / "vectors", output="sentence_embedding")
    config = json.loads((folder / "config.json").read_text())
    hub_folders.write_json(folder, "config.json", {**config, "architectures": ["BertModel"]})
    model = load_model(folder)

    answer = model.run({"text": elements("a b")})

    np.testing.assert_allclose(answer["embedding"][0], mean_scores("a b", 3), atol=1e-6)
    model.close()


def test_one_label_without_a_name_scores_pairs_of_texts(tmp_path: Path) -> None:
    folder = hub_folders.write_text(
        tmp_path / "ranker", labels=("LABEL_0",), max_position_embeddings=6
    )
    model = load_model(folder)
    queries, documents = ("a b", "a", "b a b a b"), ("smith lives", "", "anna")

    inputs = {"text": elements(*queries), "text_pair": elements(*documents)}
    answer = model.run(inputs, ["score", TOKEN_COUNT])

    # [CLS] query [SEP] document; of the last pair, three tokens of the longer text are left.
    rows = [ids("a b") + ids("smith lives")[1:-1], ids("a"), ids("b a b") + ids("anna")[1:-1]]
    means = np.array([hub_folders.table(1)[row].mean() for row in rows])
    np.testing.assert_allclose(answer["score"], 1 / (1 + np.exp(-means)), rtol=1e-6)
    assert answer[TOKEN_COUNT].tolist() == [6, 3, 6]
    assert encoder_task(model.signature) is EncoderTask.RERANK
    alone = one_by_one(model, inputs)["score"]
    np.testing.assert_allclose(alone, answer["score"], rtol=1e-6)
    model.close()


@pytest.mark.parametrize(
    ("labels", "config"),
    [
        (("LABEL_0",), {"problem_type": "regression"}),
        (("relevant",), {}),
        (("LABEL_0", "LABEL_1"), {}),
    ],
)
def test_named_labels_and_regressions_classify_single_texts(
    labels: tuple[str, ...], config: dict[str, Any], tmp_path: Path
) -> None:
    folder = HubFolder.read(hub_folders.write_text(tmp_path / "one", labels=labels, **config))

    assert not folder.takes_pairs


def test_tokens_of_each_text_are_counted_for_requests_that_name_them(tmp_path: Path) -> None:
    folder = hub_folders.write_text(tmp_path / "mood", max_position_embeddings=5)
    model = load_model(folder)

    answer = model.run({"text": elements(*TEXTS)}, ["label", TOKEN_COUNT])

    assert answer.keys() == {"label", TOKEN_COUNT}
    assert answer[TOKEN_COUNT].tolist() == [5, 3, 5, 2]  # with [CLS] and [SEP], truncated
    assert TOKEN_COUNT not in model.run({"text": elements("a")})
    model.close()


def test_image_classification_returns_the_five_best_labels(tmp_path: Path) -> None:
    labels = tuple("abcdefg")
    model = load_model(hub_folders.write_images(tmp_path / "pictures", labels))
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    picture = Image.fromarray(pixels)
    written = io.BytesIO()
    picture.save(written, "PNG")

    answer = model.run({"image": elements(written.getvalue())})

    small = np.asarray(picture.resize((8, 6), Image.Resampling.BILINEAR), np.float64) / 255
    means = ((small - [0.5, 0.4, 0.3]) / [0.5, 0.6, 0.7]).mean(axis=(0, 1))
    scores = softmax((means @ hub_folders.channel_matrix(7))[np.newaxis])[0]
    best = np.argsort(-scores)[:5]
    assert [label.decode() for label in answer["labels"][0]] == [labels[i] for i in best]
    np.testing.assert_allclose(answer["scores"][0], scores[best], atol=1e-5)
    model.close()


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        (
            {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}},
            {"size": (224, 224), "resize": "crop", "shorter_side": 256, "crop_rounding": "down"},
        ),
        (
            {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}},
            {"size": (384, 384), "resize": "stretch"},
        ),
        (
            {
                "image_processor_type": "CLIPImageProcessorFast",
                "size": {"shortest_edge": 224},
                "crop_size": {"height": 224, "width": 224},
                "resample": 3,
            },
            {"size": (224, 224), "shorter_side": 224, "interpolation": "bicubic"},
        ),
        (
            {
                "image_processor_type": "DeiTImageProcessor",
                "size": {"height": 256, "width": 256},
                "crop_size": 224,
            },
            {"size": (224, 224), "stretched": (256, 256), "shorter_side": None},
        ),
        (
            {"image_processor_type": None, "feature_extractor_type": "ViTFeatureExtractor"}
            | {"size": 32, "do_rescale": False, "do_normalize": False, "image_mean": None},
            {"size": (32, 32), "scale": 1.0, "mean": (), "std": ()},
        ),
    ],
)
def test_an_image_processor_becomes_an_image_step(
    processor: dict[str, Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    folder = hub_folders.write_images(tmp_path / "pictures", ("a", "b"), **processor)

    spec = image_spec(HubFolder.read(folder))

    assert {name: getattr(spec, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("processor", "reason"),
    [
        ({"image_processor_type": "DonutImageProcessor"}, "'Donut' is not supported, only Bit"),
        ({"resample": 1}, "'resample' 1 in preprocessor_config.json is not supported"),
        ({"size": {"shortest_edge": 5, "longest_edge": 9}}, "preprocessor_config.json is not"),
        ({"image_mean": None}, "preprocessor_config.json is not supported"),
    ],
)
def test_an_image_processor_that_would_be_approximated_is_refused(
    processor: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    folder = hub_folders.write_images(tmp_path / "pictures", ("a", "b"), **processor)

    with pytest.raises(UnsupportedModelError, match=reason):
        load_model(folder)


@pytest.mark.parametrize(
    ("config", "card", "task"),
    [
        ({"architectures": ["RobertaForTokenClassification"]}, "", HubTask.TOKEN_CLASSIFICATION),
        ({"architectures": ["MPNetModel"]}, "", HubTask.FEATURE_EXTRACTION),
        ({"model_type": "bert"}, "---\npipeline_tag: text-classification\n---\n", "text-classif"),
        (
            {"architectures": ["BertForMaskedLM"]},
            '---\ntags: [x]\npipeline_tag: "sentence-similarity"\n---\n# Card',
            HubTask.FEATURE_EXTRACTION,
        ),
    ],
)
def test_the_task_comes_from_the_architecture_else_from_the_model_card(
    config: dict[str, Any], card: str, task: str, tmp_path: Path
) -> None:
    hub_folders.write_json(tmp_path, "config.json", config)
    (tmp_path / "README.md").write_text(card)
    (tmp_path / "model.safetensors").write_bytes(b"")

    assert HubFolder.read(tmp_path).task.startswith(task)


@pytest.mark.parametrize(
    ("config", "card", "reason"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "---\npipeline_tag: text-generation\n---", "vLLM"),
        ({"architectures": ["BertForMaskedLM"]}, "text about pipeline_tag: x", "is not supported"),
        ({"architectures": ["XModel"], "auto_map": {"AutoModel": "x.X"}}, "", "never executed"),
    ],
)
def test_a_model_that_is_not_supported_is_refused_with_what_is(
    config: dict[str, Any], card: str, reason: str, tmp_path: Path
) -> None:
    hub_folders.write_json(tmp_path, "config.json", config)
    (tmp_path / "README.md").write_text(card)
    (tmp_path / "model.safetensors").write_bytes(b"")

    with pytest.raises(UnsupportedModelError, match=reason):
        load_model(tmp_path)


def test_an_onnx_file_needs_no_code_of_the_author(tmp_path: Path) -> None:
    folder = hub_folders.write_text(tmp_path / "mood", auto_map={"AutoModel": "mood.Mood"})
    (folder / "mood.py").write_text("raise SystemExit")

    inspected = inspect_model(folder)

    assert (inspected.runtime, inspected.runs_code) == ("huggingface", False)


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, 512),
        ({"tokenizer_config.json": {"model_max_length": 1e30}}, 512),
        ({"tokenizer_config.json": {"model_max_length": 128}}, 128),
        ({"sentence_bert_config.json": {"max_seq_length": 64}}, 64),
        ({"config.json": {"model_type": "bert", "max_position_embeddings": 256}}, 256),
        (
            {
                "config.json": {
                    "model_type": "roberta",
                    "max_position_embeddings": 514,
                    "pad_token_id": 1,
                }
            },
            512,
        ),
    ],
)
def test_texts_are_truncated_to_the_smallest_limit_of_the_files(
    files: dict[str, dict[str, Any]], limit: int, tmp_path: Path
) -> None:
    folder = hub_folders.write_text(tmp_path / "mood")
    for name, content in files.items():
        before = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        hub_folders.write_json(folder, name, {**before, **content})

    assert HubFolder.read(folder).max_tokens == limit


@pytest.mark.parametrize("names", [{"1": "a", "2": "b"}, {"x": "a"}, {}])
def test_labels_that_are_not_numbered_from_0_are_refused(
    names: dict[str, str], tmp_path: Path
) -> None:
    folder = hub_folders.write_text(tmp_path / "mood", id2label=names)

    with pytest.raises(UnsupportedModelError, match="does not number the labels from 0"):
        load_model(folder)


def test_labels_without_names_are_numbered_as_in_transformers(tmp_path: Path) -> None:
    folder = hub_folders.write_text(tmp_path / "mood", id2label=None, num_labels=3)

    assert HubFolder.read(folder).labels == ("LABEL_0", "LABEL_1", "LABEL_2")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("tokenizer.json", None), "there is no tokenizer.json; write it with AutoTokenizer"),
        (("config.json", b"{"), "no runtime|config.json is not valid JSON"),
        (("modules.json", b'{"a": 1}'), "modules.json is not a list of modules"),
        (
            ("modules.json", b'[{"type": "x.Dense", "path": "2_Dense"}]'),
            "the module Dense in '2_Dense' is not supported",
        ),
        (
            ("modules.json", b'[{"type": "x.Pooling", "path": "1_Pooling"}]'),
            "pooling by nothing is not supported",
        ),
    ],
)
def test_a_damaged_or_unusual_folder_is_refused_with_the_file(
    change: tuple[str, bytes | None], reason: str, tmp_path: Path
) -> None:
    folder = hub_folders.write_text(tmp_path / "v", "BertModel", output="last_hidden_state")
    name, content = change
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)

    with pytest.raises(UnsupportedModelError, match=reason):
        load_model(folder, "huggingface")


def test_a_pickle_is_refused_without_permission_and_safetensors_are_preferred(
    tmp_path: Path,
) -> None:
    hub_folders.write_json(tmp_path, "config.json", {"architectures": ["BertModel"]})
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02}.")

    with pytest.raises(CodeNotAllowedError, match=r"pytorch_model\.bin"):
        inspect_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert HubFolder.read(tmp_path).model_file == "model.safetensors"


def test_weights_need_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    hub_folders.write_json(tmp_path, "config.json", {"architectures": ["BertModel"]})
    (tmp_path / "model.safetensors").write_bytes(b"")

    with pytest.raises(FailedPreconditionError, match=r"pip install 'headrace\[huggingface\]'"):
        load_model(tmp_path)


def test_only_the_files_that_serving_needs_are_listed(tmp_path: Path) -> None:
    folder = hub_folders.write_text(tmp_path / "mood", onnx_file="onnx/model.onnx")
    for name in ("model.safetensors", "tf_model.h5", "onnx/model_fp16.onnx", "training_args.bin"):
        (folder / name).write_bytes(b"x")

    assert sorted(HubFolder.read(folder).files()) == [
        "config.json",
        "onnx/model.onnx",
        "tokenizer.json",
    ]


def test_shards_are_listed_and_paths_outside_the_folder_are_not(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    hub_folders.write_json(folder, "config.json", {"architectures": ["BertModel"]})
    (tmp_path / "secret").write_bytes(b"x")
    (folder / "model-1.safetensors").write_bytes(b"x")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "../secret"}}
    hub_folders.write_json(folder, "model.safetensors.index.json", index)

    assert sorted(HubFolder.read(folder).weights()) == [
        "model-1.safetensors",
        "model.safetensors.index.json",
    ]


def test_another_folder_with_a_config_json_is_none(tmp_path: Path) -> None:
    hub_folders.write_json(tmp_path, "config.json", {"lr": 0.1})

    with pytest.raises(UnsupportedModelError):
        detect_runtime(tmp_path)
