"""Model folder in the layout of the Hugging Face hub: its task, labels and files.

Only JSON files are read. Nothing in the folder is imported or executed.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from headrace.core import UnsupportedModelError

CONFIG: Final = "config.json"
TOKENIZER: Final = "tokenizer.json"
IMAGE_PROCESSOR: Final = "preprocessor_config.json"
MODULES: Final = "modules.json"
"""The modules of a model of the library sentence-transformers, in order."""
_TOKENIZER_CONFIG: Final = "tokenizer_config.json"
_SENTENCE_CONFIG: Final = "sentence_bert_config.json"
_CARD: Final = "README.md"
ONNX_FILES: Final = ("model.onnx", "onnx/model.onnx")
"""Exports in the order of preference, as Optimum and the hub name them."""
SAFETENSORS: Final = ("model.safetensors", "model.safetensors.index.json")
PICKLES: Final = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_SIDE_FILES: Final = (
    CONFIG,
    _TOKENIZER_CONFIG,
    TOKENIZER,
    IMAGE_PROCESSOR,
    MODULES,
    _SENTENCE_CONFIG,
    _CARD,
)
_MAX_JSON_BYTES: Final = 64 << 20
_MAX_CARD_BYTES: Final = 16 << 10
_TAG: Final = re.compile(r"^pipeline_tag:\s*[\"']?([a-z-]+)", re.MULTILINE)
_NO_LIMIT: Final = 1 << 20
"""Token limits from here mean none: transformers writes 1e30."""
_DEFAULT_TOKENS: Final = 512
_UNNAMED: Final = "LABEL_0"
"""Name of a model's first label by default."""
_POSITIONS_AFTER_PADDING: Final = frozenset(
    {"camembert", "mpnet", "roberta", "xlm-roberta", "xlm-roberta-xl", "xmod"}
)
"""Model types whose first position id is the padding token's plus 1."""
_HOW: Final = "the author's code in a Hugging Face folder is never executed"


class HubTask(StrEnum):
    """Task of a model, by the hub's `pipeline_tag`."""

    TEXT_CLASSIFICATION = "text-classification"
    TOKEN_CLASSIFICATION = "token-classification"  # noqa: S105  # a token of a text
    FEATURE_EXTRACTION = "feature-extraction"
    IMAGE_CLASSIFICATION = "image-classification"

    @property
    def output(self) -> str:
        """Name of the model's output that the task needs."""
        return "last_hidden_state" if self is HubTask.FEATURE_EXTRACTION else "logits"

    @property
    def takes_text(self) -> bool:
        """Whether the model takes tokens; else it takes pixels."""
        return self is not HubTask.IMAGE_CLASSIFICATION


_HEADS: Final = {
    "ForSequenceClassification": HubTask.TEXT_CLASSIFICATION,
    "ForTokenClassification": HubTask.TOKEN_CLASSIFICATION,
    "ForImageClassification": HubTask.IMAGE_CLASSIFICATION,
}
_TAGS: Final = {
    **{str(task): task for task in HubTask},
    "sentence-similarity": HubTask.FEATURE_EXTRACTION,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFolder:
    """A model folder with a readable `config.json` and a supported task."""

    path: Path
    config: Mapping[str, Any]
    task: HubTask
    model_file: str
    """Relative path of the file with the weights: ONNX first, then safetensors, then a pickle."""

    @classmethod
    def read(cls, path: Path) -> "HubFolder":
        """Return the folder at `path`.

        Raises:
            UnsupportedModelError: It is not such a folder, its task is not supported, it has no
                weights, or only the author's code could run them.
        """
        config = read_json(path, CONFIG)
        if config is None:
            raise _refuse(path, f"there is no {CONFIG}")
        task = _task_of(path, config)
        files = (*ONNX_FILES, *SAFETENSORS, *PICKLES)
        model_file = next((name for name in files if (path / name).is_file()), "")
        if not model_file:
            msg = f"there are no weights: none of {', '.join(files)}"
            raise _refuse(path, msg)
        folder = cls(path=path, config=config, task=task, model_file=model_file)
        if "auto_map" in config and not folder.is_onnx:
            msg = (
                f"{CONFIG} has an 'auto_map': the model is defined by code in the folder; {_HOW}. "
                "Export it to ONNX where you trust the code"
            )
            raise _refuse(path, msg)
        return folder

    @property
    def is_onnx(self) -> bool:
        """Whether the model file is an ONNX export, so that no PyTorch is needed."""
        return self.model_file in ONNX_FILES

    @property
    def is_pickle(self) -> bool:
        """Whether the weights are a pickle, which can run code when it is loaded."""
        return self.model_file in PICKLES

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in the model's order, as transformers names them.

        Raises:
            UnsupportedModelError: `id2label` does not number them from 0.
        """
        names = self.config.get("id2label")
        if not isinstance(names, dict):
            count = self.config.get("num_labels", 2)
            return tuple(f"LABEL_{i}" for i in range(count if isinstance(count, int) else 2))
        try:
            by_number = {int(number): str(name) for number, name in names.items()}
        except ValueError:
            by_number = {}
        if sorted(by_number) != list(range(len(names))) or not names:
            raise _refuse(self.path, f"'id2label' in {CONFIG} does not number the labels from 0")
        return tuple(by_number[i] for i in range(len(by_number)))

    @property
    def takes_pairs(self) -> bool:
        """Whether a row is a pair of texts: a cross-encoder has one label, without a name.

        A model that was trained by transformers to score single texts has a `problem_type`.
        """
        is_scored = self.task is HubTask.TEXT_CLASSIFICATION and self.labels == (_UNNAMED,)
        return is_scored and self.config.get("problem_type") is None

    @property
    def max_tokens(self) -> int:
        """Length to which texts are truncated: the smallest limit that the files state."""
        sentences = read_json(self.path, _SENTENCE_CONFIG) or {}
        tokenizer = read_json(self.path, _TOKENIZER_CONFIG) or {}
        positions = self.config.get("max_position_embeddings")
        if isinstance(positions, int) and self.config.get("model_type") in _POSITIONS_AFTER_PADDING:
            padding = self.config.get("pad_token_id")
            positions -= (padding if isinstance(padding, int) else 1) + 1
        limits = (sentences.get("max_seq_length"), tokenizer.get("model_max_length"), positions)
        valid = [
            int(limit)
            for limit in limits
            if isinstance(limit, int | float) and 0 < limit < _NO_LIMIT
        ]
        return min(valid, default=_DEFAULT_TOKENS)

    def files(self) -> Iterator[str]:
        """Yield the relative paths of the files that are needed to serve the model."""
        names = [*_SIDE_FILES, *self.weights()]
        names += [f"{name}/{CONFIG}" for _, name in read_modules(self.path) or [] if name]
        if not (self.path / TOKENIZER).is_file():  # from which transformers makes one
            names += sorted(
                file.name
                for file in self.path.iterdir()
                if file.suffix in {".model", ".txt"} or "token" in file.name or "vocab" in file.name
            )
        yield from (name for name in dict.fromkeys(names) if self._has(name))

    def weights(self) -> Iterator[str]:
        """Yield the relative paths of the files with the weights."""
        yield self.model_file
        if self.is_onnx and self._has(f"{self.model_file}_data"):
            yield f"{self.model_file}_data"
        index = read_json(self.path, self.model_file) if self.model_file.endswith(".json") else None
        shards = (index or {}).get("weight_map")
        if isinstance(shards, dict):
            yield from filter(self._has, sorted(set(map(str, shards.values()))))

    def _has(self, name: str) -> bool:
        inside = not Path(name).is_absolute() and ".." not in Path(name).parts
        return inside and (self.path / name).is_file()


def is_hub_folder(path: Path) -> bool:
    """Whether `path` is a folder of the hub's layout, by the content of its `config.json`."""
    try:
        config = read_json(path, CONFIG) if path.is_dir() else None
    except UnsupportedModelError:
        return False
    return config is not None and (
        isinstance(config.get("architectures"), list) or isinstance(config.get("model_type"), str)
    )


def read_json(folder: Path, name: str) -> dict[str, Any] | None:
    """Return the object in a JSON file of a folder; None if there is no such file.

    Raises:
        UnsupportedModelError: It cannot be read, or holds no object.
    """
    file = folder / name
    if not file.is_file():
        return None
    try:
        if file.stat().st_size > _MAX_JSON_BYTES:
            raise _refuse(folder, f"{name} is larger than {_MAX_JSON_BYTES} bytes")
        value = json.loads(file.read_bytes())
    except OSError as error:
        raise _refuse(folder, f"{name}: {error.strerror}") from error
    except (ValueError, RecursionError):
        raise _refuse(folder, f"{name} is not valid JSON") from None
    if not isinstance(value, dict):
        raise _refuse(folder, f"{name} holds no JSON object")
    return value


def read_modules(folder: Path) -> list[tuple[str, str]] | None:
    """Return type and folder of each module of a sentence-transformers model; None for others.

    Raises:
        UnsupportedModelError: `modules.json` cannot be read.
    """
    file = folder / MODULES
    if not file.is_file():
        return None
    try:
        entries: list[Any] = [*json.loads(file.read_bytes())]
        return [(str(entry["type"]).rpartition(".")[2], str(entry["path"])) for entry in entries]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        raise _refuse(folder, f"{MODULES} is not a list of modules") from None


def _task_of(path: Path, config: Mapping[str, Any]) -> HubTask:
    """Return the task by the architecture, else by the model card."""
    if (path / MODULES).is_file():
        return HubTask.FEATURE_EXTRACTION
    names = config.get("architectures")
    architecture = str(names[0]) if isinstance(names, list) and names else ""
    for suffix, task in _HEADS.items():
        if architecture.endswith(suffix):
            return task
    tag = _card_tag(path)
    if tag in _TAGS:
        return _TAGS[tag]
    is_bare = architecture.endswith("Model") and "Head" not in architecture  # GPT2LMHeadModel
    if is_bare and not (path / IMAGE_PROCESSOR).is_file():
        return HubTask.FEATURE_EXTRACTION
    msg = (
        f"{architecture or 'a model without `architectures`'}"
        f"{f' for {tag}' if tag else ''} is not supported; supported tasks: {', '.join(HubTask)}. "
        "Serve a language model with vLLM or llama.cpp and name that server as an `upstream`"
    )
    raise _refuse(path, msg)


def _card_tag(path: Path) -> str:
    """Return `pipeline_tag` of the model card's front matter; empty for none."""
    try:
        with (path / _CARD).open(encoding="utf-8", errors="replace") as file:
            head = file.read(_MAX_CARD_BYTES)
    except OSError:
        return ""
    front = head.split("\n---", 1)[0] if head.startswith("---") else ""
    match = _TAG.search(front)
    return match.group(1) if match else ""


def _refuse(path: Path, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"{path} is a Hugging Face folder: {reason}")
