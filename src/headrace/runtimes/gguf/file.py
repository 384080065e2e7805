"""Files of a language model: headers of GGUF files, and defaults of its version, without a load.

Counts and lengths are not trusted: every read is bounded by the file and by a limit of this module.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import re
import struct
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from headrace.core import InvalidArgumentError, UnsupportedModelError
from headrace.core.error_kind import UNDECODABLE, error_kind
from headrace.core.files import read_regular
from headrace.core.settings import DEFAULT_CONTEXT_TOKENS, LlmSpec, Pooling
from headrace.core.text import bytes_text
from headrace.runtimes.file_bytes import BrokenFileError, FileReader, visible_files

MAGIC: Final = b"GGUF"
SUFFIX: Final = ".gguf"
_CHAT_TEMPLATE: Final = "chat_template.jinja"
_MAX_DEFAULTS_BYTES: Final = 1 << 20
_IGNORED: Final = re.compile(
    r".*_token_id|output_.*|return_.*|use_cache|cache_.*|max_length|transformers_version|_.*"
)
"""Settings of transformers that concern only itself, or that the GGUF file has too."""
_TRAINING_TAG: Final = re.compile(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}")
"""Statement of transformers and llama.cpp that Jinja does not have."""
_VERSIONS: Final = (2, 3)
_MAX_ENTRIES: Final = 100_000
"""Limit of keys, and of tensors."""
_MAX_ITEMS: Final = 4_000_000
"""Limit of the strings in all lists together; vocabularies have up to 600,000."""
_MAX_LIST: Final = 4096
"""Longer lists of numbers are skipped: those that are read have one number per layer."""
_MAX_TEXT: Final = 256
_MAX_DIMENSIONS: Final = 4
_NUMBERS: Final = dict(enumerate("BbHhIifB")) | {10: "Q", 11: "q", 12: "d"}
"""`struct` formats of numbers and booleans by type number."""
_TEXT, _LIST = 8, 9
_BLOCKS: Final[dict[int, tuple[str, int, int]]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}
"""By number of a tensor's type: its name, and a block's size in elements and in bytes."""
_POOLINGS: Final = {1: Pooling.MEAN, 2: Pooling.CLS, 3: Pooling.LAST, 4: Pooling.RANK}
_F16_BYTES: Final = 2
_DEFAULT_ALIGNMENT: Final = 32


@dataclass(slots=True)
class GgufHeader:
    """Keys and tensors of one file; a list of strings is stored as its length."""

    size_bytes: int
    version: int
    tensors: int
    values: dict[str, int | str | list[int]] = field(default_factory=dict)
    parameters: int = 0
    type_bytes: Counter[str] = field(default_factory=Counter)
    """Bytes of the tensors by the name of their type."""

    def number(self, key: str, default: int) -> int:
        """Return an integer; `default` if the key is absent or of another type."""
        value = self.values.get(key)
        return value if isinstance(value, int) else default

    def text(self, key: str) -> str:
        """Return a string; empty if the key is absent or of another type."""
        value = self.values.get(key)
        return value if isinstance(value, str) else ""

    def sum_over(self, key: str, default: int, layers: int) -> int:
        """Return the sum over all layers of a number that may differ between them."""
        value = self.values.get(key)
        return sum(value) if isinstance(value, list) else layers * self.number(key, default)


_HUGGING_FACE_NAMES: Final = {
    "temp": "temperature",
    "penalty_repeat": "repetition_penalty",
    "n_predict": "max_new_tokens",
}


class GenerationConfig(msgspec.Struct, frozen=True, omit_defaults=True, rename=_HUGGING_FACE_NAMES):
    """Settings of requests that do not set them, by llama.cpp's names; None leaves them to it."""

    temp: Annotated[float, msgspec.Meta(ge=0, le=10)] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] | None = None
    min_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    penalty_repeat: Annotated[float, msgspec.Meta(gt=0, le=10)] | None = None
    n_predict: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None
    """Limit of an answer in tokens."""
    do_sample: bool | None = None
    """False for a `temp` of 0."""

    @classmethod
    def decode(cls, data: bytes) -> "GenerationConfig":
        """Return the settings in the content of a `generation_config.json`.

        Raises:
            BrokenFileError: It has a setting that is neither supported nor safe to ignore.
            MsgspecError: It is not JSON, or a value is of the wrong type or beyond its range.
        """
        document = msgspec.json.decode(data, type=dict[str, Any])
        names = cls.__struct_encode_fields__
        if unknown := [n for n in document if n not in names and not _IGNORED.fullmatch(n)]:
            shown = ", ".join(name if name.isidentifier() else "?" for name in sorted(unknown)[:8])
            raise BrokenFileError(f"has the settings {shown}; supported are {', '.join(names)}")
        config = msgspec.convert(document, cls)
        temp = 0.0 if config.do_sample is False else config.temp
        return msgspec.structs.replace(config, temp=temp, do_sample=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufModelFiles:
    """A language model: its files, and the facts of its headers."""

    path: Path
    """Its file, or the first of several parts."""
    adapters: tuple[Path, ...]
    """LoRA adapters in the same directory, by name."""
    architecture: str
    name: str
    """Name by its author; may be empty."""
    parameters: int
    quantization: str
    """Type of most of the weights, such as `Q4_K`."""
    weights_bytes: int
    context_tokens: int
    """Longest sequence that it was trained for."""
    token_bytes: int
    """Size of one token in the KV cache, in 16-bit floats."""
    pooling: Pooling | None
    """How it combines tokens into one vector; None for a model that generates text."""
    has_chat_template: bool
    """Whether the GGUF file has one."""
    chat_template: str
    """Template of the version, instead of the one in the GGUF file; empty for none."""
    generation: GenerationConfig

    def facts(self) -> dict[str, str]:
        """Return the facts by name, for display."""
        slots = LlmSpec().slots
        context = self.context_of(LlmSpec())
        memory = bytes_text(self.memory_bytes(LlmSpec()))
        in_file = "yes" if self.has_chat_template else "no"
        settings = msgspec.to_builtins(self.generation).items()
        facts = {
            "architecture": self.architecture,
            "title": self.name,
            "parameters": f"{self.parameters / 1e6:,.0f} million, mostly {self.quantization}",
            "context": f"{self.context_tokens} tokens",
            "chat_template": _CHAT_TEMPLATE if self.chat_template else in_file,
            "sampling": ", ".join(f"{name} {value}" for name, value in settings),
            "pooling": self.pooling or "",
            "adapters": ", ".join(file.name for file in self.adapters),
            "memory": f"{memory} with {slots} slots of {context} tokens",
        }
        return {name: text for name, text in facts.items() if text}

    def context_of(self, spec: LlmSpec) -> int:
        """Return the context of each slot in tokens.

        Raises:
            InvalidArgumentError: It is longer than the model's.
        """
        if spec.context_tokens is None:
            return min(self.context_tokens, DEFAULT_CONTEXT_TOKENS)
        if spec.context_tokens > self.context_tokens:
            msg = (
                f"`llm.context_tokens` is {spec.context_tokens}, but the context of the model "
                f"'{self.path.name}' is {self.context_tokens} tokens"
            )
            raise InvalidArgumentError(msg)
        return spec.context_tokens

    def memory_bytes(self, spec: LlmSpec) -> int:
        """Return the size of the weights and of the KV cache of all slots."""
        return self.weights_bytes + spec.slots * self.context_of(spec) * self.token_bytes

    def check_memory(self, spec: LlmSpec, available_bytes: int) -> None:
        """Check that the model fits into the available memory.

        Raises:
            UnsupportedModelError: It does not; the message says what it needs, and what is there.
        """
        needed = self.memory_bytes(spec)
        if needed > available_bytes:
            cache = bytes_text(needed - self.weights_bytes)
            raise UnsupportedModelError(
                f"{self.path}: needs {bytes_text(needed)}: {bytes_text(self.weights_bytes)} of "
                f"weights, and {cache} for {spec.slots} slots of {self.context_of(spec)} tokens; "
                f"{bytes_text(available_bytes)} is available: set a lower `llm.slots` or "
                "`llm.context_tokens`, or use a model with fewer bits per weight"
            )


def find_gguf(path: Path) -> GgufModelFiles:
    """Return the model in a file, or in a directory with its parts, LoRA adapters and defaults.

    Raises:
        UnsupportedModelError: A file is damaged or not supported, or there are several models.
    """
    headers: dict[Path, GgufHeader] = {}
    for file in visible_files(path, (SUFFIX,)) if path.is_dir() else (path,):
        try:
            with FileReader(file) as source:
                headers[file] = read_header(source)
        except (BrokenFileError, OSError) as error:
            raise UnsupportedModelError(f"{file}: {error}") from None
    adapters = [f for f, header in headers.items() if header.text("general.type") == "adapter"]
    parts = sorted(
        (file for file in headers if file not in adapters),
        key=lambda file: headers[file].number("split.no", 0),
    )
    if not parts:
        raise UnsupportedModelError(
            f"{path}: is a LoRA adapter without its model; push both in one directory"
        )
    expected = max(headers[parts[0]].number("split.count", 1), 1)
    numbers = [headers[file].number("split.no", 0) for file in parts]
    if expected == 1 and len(parts) > 1:
        names = ", ".join(file.name for file in parts[:8])
        raise UnsupportedModelError(
            f"{path}: holds {len(parts)} models ({names}); push one of them, by its file"
        )
    if numbers != list(range(expected)):
        raise UnsupportedModelError(
            f"{path}: has {len(parts)} of the {expected} parts of a model; push the directory "
            "with all of them"
        )
    template, generation = "", GenerationConfig()
    file = path / _CHAT_TEMPLATE
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            template = read_regular(file, limit_bytes=_MAX_DEFAULTS_BYTES).decode("utf-8-sig")
            check_chat_template(template)
        file = path / "generation_config.json"
        with suppress(FileNotFoundError, NotADirectoryError):
            generation = GenerationConfig.decode(
                read_regular(file, limit_bytes=_MAX_DEFAULTS_BYTES)
            )
    except (BrokenFileError, OSError, *UNDECODABLE) as error:
        reason = str(error) if isinstance(error, BrokenFileError) else error_kind(error)
        raise UnsupportedModelError(f"{file}: {reason}; correct it, or remove it") from None
    try:
        return _described(headers, parts, adapters, template, generation)
    except BrokenFileError as error:
        raise UnsupportedModelError(f"{parts[0]}: {error}") from None


def check_chat_template(text: str) -> None:
    """Check that a template uses messages and is parsed by Jinja, without running it.

    Raises:
        BrokenFileError: It is not; the message names the line.
    """
    if "messages" not in text:
        raise BrokenFileError("is not a chat template: it does not use `messages`")
    with suppress(ImportError):  # images of replicas lack it: llama.cpp checks the template there
        from jinja2 import Environment, TemplateSyntaxError  # noqa: PLC0415

        try:
            parser = Environment(autoescape=True, extensions=["jinja2.ext.loopcontrols"])
            parser.parse(_TRAINING_TAG.sub("", text))
        except (TemplateSyntaxError, ValueError) as error:
            raise BrokenFileError(f"is not a Jinja template: {error_kind(error)}") from None


def _described(
    headers: dict[Path, GgufHeader],
    parts: list[Path],
    adapters: list[Path],
    template: str,
    generation: GenerationConfig,
) -> GgufModelFiles:
    header = headers[parts[0]]
    architecture = header.text("general.architecture")
    if not architecture:
        raise BrokenFileError("names no architecture")
    if architecture == "clip" or header.text("general.type") == "mmproj":
        raise BrokenFileError(
            "holds the encoder of images of another model, which is not supported"
        )
    layers = header.number(f"{architecture}.block_count", 0)
    width = header.number(f"{architecture}.embedding_length", 0)
    context = header.number(f"{architecture}.context_length", 0)
    if min(layers, width, context) <= 0:
        raise BrokenFileError(
            "does not declare the layers, the width and the context of a language model"
        )
    heads = header.sum_over(f"{architecture}.attention.head_count", 0, layers)
    kv_heads = header.sum_over(f"{architecture}.attention.head_count_kv", heads // layers, layers)
    head = width * layers // heads if heads > 0 else 0
    lengths = (
        header.number(f"{architecture}.attention.{kind}_length", head) for kind in ("key", "value")
    )
    every = [headers[file] for file in parts]
    types = sum((part.type_bytes for part in every), Counter[str]())
    return GgufModelFiles(
        path=parts[0],
        adapters=tuple(sorted(adapters)),
        architecture=architecture,
        name=header.text("general.name"),
        parameters=sum(part.parameters for part in every),
        quantization=max(types, key=types.__getitem__, default="none"),
        weights_bytes=sum(part.size_bytes for part in every),
        context_tokens=context,
        token_bytes=max(kv_heads, 0) * max(sum(lengths), 0) * _F16_BYTES,
        pooling=_POOLINGS.get(header.number(f"{architecture}.pooling_type", 0)),
        has_chat_template="tokenizer.chat_template" in header.values,
        chat_template=template,
        generation=generation,
    )


def read_header(source: FileReader) -> GgufHeader:
    """Return the header of a file.

    Raises:
        BrokenFileError: It is not a GGUF file of a supported version, or is damaged.
    """
    if source.head(len(MAGIC)) != MAGIC:
        raise BrokenFileError("is not a GGUF file")
    cursor = _Cursor(source, offset=len(MAGIC))
    (version,) = cursor.numbers("I")
    if version not in _VERSIONS:
        is_swapped = version.to_bytes(4, "little") in {v.to_bytes(4, "big") for v in _VERSIONS}
        reason = "has big-endian numbers" if is_swapped else f"is of GGUF version {version}"
        raise BrokenFileError(f"{reason}; supported is version 2 or 3, little-endian")
    tensors, keys = cursor.count("tensors"), cursor.count("keys")
    header = GgufHeader(size_bytes=source.size, version=version, tensors=tensors)
    for _ in range(keys):
        key = cursor.text()
        header.values[key] = cursor.value(*cursor.numbers("I"))
    ends = [cursor.tensor(header) for _ in range(tensors)]
    alignment = max(header.number("general.alignment", _DEFAULT_ALIGNMENT), 1)
    start = math.ceil(cursor.offset / alignment) * alignment
    if tensors and start + max(ends) > source.size:
        raise BrokenFileError("is truncated or damaged: it ends before its tensors do")
    return header


@dataclass(slots=True)
class _Cursor:
    """Position in a header; `items_left` bounds the strings that are still read in lists."""

    source: FileReader
    offset: int
    items_left: int = _MAX_ITEMS

    def numbers(self, form: str) -> list[int]:
        """Return numbers by their `struct` format; a floating-point number is 0."""
        data = self.source.read(self.offset, struct.calcsize(f"<{form}"))
        self.offset += len(data)
        values = struct.unpack(f"<{form}", data)
        return [value if isinstance(value, int) else 0 for value in values]

    def count(self, description: str) -> int:
        (value,) = self.numbers("Q")
        if value > _MAX_ENTRIES:
            raise BrokenFileError(f"declares {value} {description}; the limit is {_MAX_ENTRIES}")
        return value

    def skip(self, size: int) -> None:
        self.offset += size
        if self.offset > self.source.size:
            raise BrokenFileError("is truncated or damaged: it ends before its content does")

    def text(self) -> str:
        """Return a string, cut to `_MAX_TEXT` bytes."""
        (size,), start = self.numbers("Q"), self.offset
        self.skip(size)
        return self.source.read(start, min(size, _MAX_TEXT)).decode("utf-8", "replace")

    def value(self, kind: int) -> int | str | list[int]:
        """Return a value by its type; a long list of numbers is empty."""
        if kind in _NUMBERS:
            return self.numbers(_NUMBERS[kind])[0]
        if kind == _TEXT:
            return self.text()
        if kind != _LIST:
            raise BrokenFileError(f"has a value of the unknown type {kind}")
        item, size = self.numbers("IQ")
        if item == _TEXT:
            self.items_left -= size
            if self.items_left < 0:
                raise BrokenFileError(f"has lists of more than {_MAX_ITEMS} strings")
            for _ in range(size):
                self.skip(*self.numbers("Q"))
            return size
        if item not in _NUMBERS:
            raise BrokenFileError(f"has a list of the unknown type {item}")
        if size <= _MAX_LIST:
            return self.numbers(f"{size}{_NUMBERS[item]}")
        self.skip(size * struct.calcsize(f"<{_NUMBERS[item]}"))
        return []

    def tensor(self, header: GgufHeader) -> int:
        """Count a tensor in `header`; return the end of its data, from the start of all data."""
        self.text()
        (dimensions,) = self.numbers("I")
        if dimensions > _MAX_DIMENSIONS:
            raise BrokenFileError(
                f"has a tensor of {dimensions} dimensions; the limit is {_MAX_DIMENSIONS}"
            )
        elements = math.prod(self.numbers(f"{dimensions}Q"))
        kind, offset = self.numbers("IQ")
        # llama.cpp checks the types that this table does not have yet.
        name, block, block_bytes = _BLOCKS.get(kind, (f"type {kind}", 1, 0))
        size = elements // block * block_bytes
        header.parameters += elements
        header.type_bytes[name] += size
        return offset + size
