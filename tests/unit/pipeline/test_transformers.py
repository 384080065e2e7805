"""Folders that transformers writes give the answers of its own pipelines, by torch and exported."""

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from PIL import Image

from headrace.core import Array, Tensors, UnsupportedModelError
from headrace.optimize.convert.process import MODEL, ConvertRequest, outcome
from headrace.runtimes import inspect_model, load_model
from tests.unit.pipeline.elements import elements, one_by_one

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
from tokenizers import (  # noqa: E402  # after what decides whether the file is run
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::FutureWarning"),
]

TOLERANCE: Final = 1e-4
TEXTS: Final = (
    "Anna Smith lives in Berlin and works for Siemens.",
    "Der Fluss fließt zum Meer; what comes back is 雨.",
    "an awful film",
    "good",
)
TAGS: Final = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "MISC")
SIZES: Final = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}


def word_pieces() -> Any:  # noqa: ANN401  # a tokenizer of transformers
    """A tokenizer of BERT's kind, trained on the texts."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106  # a token of a text
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=special)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = dict(zip(("pad", "unk", "cls", "sep", "mask"), special, strict=True))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=64,
        **{f"{name}_token": token for name, token in names.items()},
    )


def byte_pairs() -> Any:  # noqa: ANN401  # a tokenizer of transformers
    """A tokenizer of RoBERTa's kind, trained on the texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = dict(zip(("bos", "pad", "eos", "unk", "mask"), special, strict=True))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=62,
        model_input_names=["input_ids", "attention_mask"],
        **{f"{name}_token": token for name, token in names.items()},
    )


def save(folder: Path, model: Any, *processors_of_it: Any) -> Path:  # noqa: ANN401  # transformers has few types
    """Write a model with larger weights than at its initialization, so that answers differ."""
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(3)
    for part in (model.eval(), *processors_of_it):
        part.save_pretrained(folder)
    return folder


def labelled(names: tuple[str, ...]) -> dict[str, Any]:
    return {
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
    }


def bert_sequences(folder: Path) -> Path:
    tokenizer = word_pieces()
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), **SIZES, **labelled(("bad", "ok", "good"))
    )
    return save(folder, transformers.BertForSequenceClassification(config), tokenizer)


def distilbert_sequences(folder: Path) -> Path:
    tokenizer = word_pieces()
    config = transformers.DistilBertConfig(
        vocab_size=len(tokenizer),
        dim=32,
        n_layers=2,
        n_heads=4,
        hidden_dim=64,
        max_position_embeddings=64,
        num_labels=4,
        problem_type="multi_label_classification",
    )
    return save(folder, transformers.DistilBertForSequenceClassification(config), tokenizer)


def bert_tokens(folder: Path) -> Path:
    tokenizer = word_pieces()
    config = transformers.BertConfig(vocab_size=len(tokenizer), **SIZES, **labelled(TAGS))
    return save(folder, transformers.BertForTokenClassification(config), tokenizer)


def roberta_tokens(folder: Path) -> Path:
    tokenizer = byte_pairs()
    config = transformers.RobertaConfig(
        vocab_size=len(tokenizer), pad_token_id=1, type_vocab_size=1, **SIZES, **labelled(TAGS)
    )
    return save(folder, transformers.RobertaForTokenClassification(config), tokenizer)


def bert_features(folder: Path) -> Path:
    tokenizer = word_pieces()
    config = transformers.BertConfig(vocab_size=len(tokenizer), **SIZES)
    return save(folder, transformers.BertModel(config), tokenizer)


def vit_images(folder: Path) -> Path:
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        num_labels=7,
    )
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    return save(folder, transformers.ViTForImageClassification(config), processor)


def deit_images(folder: Path) -> Path:
    config = transformers.DeiTConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        num_labels=6,
    )
    processor = transformers.DeiTImageProcessor(
        size={"height": 41, "width": 41}, crop_size={"height": 32, "width": 32}
    )
    return save(folder, transformers.DeiTForImageClassification(config), processor)


def resnet_images(folder: Path) -> Path:
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3
    )
    processor = transformers.ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.8)
    return save(folder, transformers.ResNetForImageClassification(config), processor)


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 256, (40 + 13 * i, 57 - 3 * i, 3), np.uint8))
        for i in range(4)
    ]


def encoded(picture: Image.Image) -> bytes:
    written = io.BytesIO()
    picture.save(written, "PNG")
    return written.getvalue()


def check_sequences(folder: Path, answer: Tensors) -> None:
    pipeline = transformers.pipeline("text-classification", str(folder))
    for row, best in enumerate(pipeline(list(TEXTS))):
        assert answer["label"][row].decode() == best["label"]
        assert answer["score"][row] == pytest.approx(best["score"], abs=TOLERANCE)


def check_labels(folder: Path, answer: Tensors) -> None:
    pipeline = transformers.pipeline("text-classification", str(folder))
    check_lists(pipeline(list(TEXTS), top_k=None), answer)


def check_images(folder: Path, answer: Tensors) -> None:
    pipeline = transformers.pipeline("image-classification", str(folder), use_fast=False)
    check_lists(pipeline(pictures()), answer)


def check_lists(rows: list[list[dict[str, Any]]], answer: Tensors) -> None:
    for row, entries in enumerate(rows):
        labels = [label.decode() for label in answer["labels"][row]]
        scores = dict(zip(labels, answer["scores"][row].tolist(), strict=True))
        assert scores == pytest.approx(
            {entry["label"]: entry["score"] for entry in entries}, abs=TOLERANCE
        )


def check_entities(folder: Path, answer: Tensors) -> None:
    pipeline = transformers.pipeline(
        "token-classification", str(folder), aggregation_strategy="simple"
    )
    count = 0
    for row, (text, entries) in enumerate(zip(TEXTS, pipeline(list(TEXTS)), strict=True)):
        ours = json.loads(answer["entities"][row])
        assert [(entity["entity_group"], entity["start"], entity["end"]) for entity in ours] == [
            (entity["entity_group"], entity["start"], entity["end"]) for entity in entries
        ]
        assert [entity["score"] for entity in ours] == pytest.approx(
            [entity["score"] for entity in entries], abs=TOLERANCE
        )
        assert [entity["word"] for entity in ours] == [
            text[entity["start"] : entity["end"]] for entity in ours
        ]
        count += len(ours)
    assert count > len(TEXTS)


def check_features(folder: Path, answer: Tensors) -> None:
    pipeline = transformers.pipeline("feature-extraction", str(folder))
    for row, vectors in enumerate(pipeline(list(TEXTS))):
        mean: Array = np.array(vectors)[0].mean(axis=0)
        np.testing.assert_allclose(answer["embedding"][row], mean, atol=TOLERANCE)


Make = Callable[[Path], Path]
Check = Callable[[Path, Tensors], None]
FOLDERS: Final[Mapping[str, tuple[Make, Check]]] = {
    "bert-sequences": (bert_sequences, check_sequences),
    "distilbert-sequences": (distilbert_sequences, check_labels),
    "bert-tokens": (bert_tokens, check_entities),
    "roberta-tokens": (roberta_tokens, check_entities),
    "bert-features": (bert_features, check_features),
    "vit-images": (vit_images, check_images),
    "deit-images": (deit_images, check_images),
    "resnet-images": (resnet_images, check_images),
}


def inputs_of(folder: Path) -> Tensors:
    if "images" in folder.name:
        return {"image": elements(*map(encoded, pictures()))}
    return {"text": elements(*TEXTS)}


@pytest.mark.parametrize("name", FOLDERS)
def test_weights_run_by_torch_answer_as_the_pipeline_of_transformers(
    name: str, tmp_path: Path
) -> None:
    make, check = FOLDERS[name]
    folder = make(tmp_path / name)
    model = load_model(folder)

    answer = model.run(inputs_of(folder))

    check(folder, answer)
    model.close()


@pytest.mark.parametrize("name", FOLDERS)
def test_an_export_answers_as_the_pipeline_of_transformers(name: str, tmp_path: Path) -> None:
    make, check = FOLDERS[name]
    folder = make(tmp_path / name)
    result = outcome(ConvertRequest(path=str(folder), runtime="huggingface"), tmp_path)
    assert not result.error
    exported = tmp_path / "exported" / name
    exported.mkdir(parents=True)
    (tmp_path / MODEL).rename(exported / "model.onnx")
    for file in folder.glob("*.json"):
        (exported / file.name).write_bytes(file.read_bytes())

    inspected = inspect_model(exported)
    model = load_model(exported)
    answer = model.run(inputs_of(folder))

    check(folder, answer)
    assert inspected.signature.batched
    alone = one_by_one(model, inputs_of(folder))
    for output, rows in answer.items():
        if rows.dtype.kind == "f":
            np.testing.assert_allclose(alone[output], rows, atol=TOLERANCE)
    model.close()


def test_a_checkpoint_without_the_weights_of_its_task_is_refused(tmp_path: Path) -> None:
    folder = bert_features(tmp_path / "features")
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["BertForSequenceClassification"]
    (folder / "config.json").write_text(json.dumps(config))

    with pytest.raises(UnsupportedModelError, match=r"lack 'classifier\.bias' and 1 more"):
        load_model(folder)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    folder = bert_features(tmp_path / "features")
    (folder / "model.safetensors").write_bytes(b"\x08" + bytes(40))

    with pytest.raises(UnsupportedModelError, match="transformers cannot load it"):
        load_model(folder)
