"""What does `pipeline.yaml` say? Reads it, and tells all mistakes at once, with their lines."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, Strict, ValidationError

from headrace.core import Datatype, TensorSpec, UnsupportedModelError
from headrace.core.spec_base import SpecModel
from headrace.core.spec_mistakes import SpecError, mistakes_of, shown, with_line
from headrace.core.spec_yaml import MAX_BYTES, SpecMistake, read_yaml
from headrace.pipeline.runtime import FILE_NAME

MAX_STEPS: Final = 64
_MAX_DIMENSION: Final = 1 << 31
_NAME: Final = r"^[A-Za-z_][A-Za-z0-9_.:/-]{0,127}$"
_FUNCTION: Final = r"^[A-Za-z0-9_./-]{1,255}\.py:[A-Za-z_][A-Za-z0-9_]{0,127}$"
_STEP: Final = r"^[a-z][a-z0-9_-]{0,63}$"

Name = Annotated[str, Field(pattern=_NAME)]
Names = Annotated[tuple[Name, ...], Strict(strict=False)]
File = Annotated[str, Field(min_length=1, max_length=1024)]
Declared = Annotated[
    tuple[
        Annotated[Datatype, Strict(strict=False)],
        Annotated[
            tuple[Annotated[int, Field(ge=-1, lt=_MAX_DIMENSION)], ...], Strict(strict=False)
        ],
    ],
    Strict(strict=False),
]
"""A tensor's datatype and shape, as in `[FP32, [-1, 4]]`; axis 0 is the batch, -1 any size."""


class StepSpec(SpecModel):
    """What all steps have.

    A step has names of its own for what it takes and gives; `inputs` and `outputs` map them to the
    names that the other steps know. What is not mapped keeps its name.
    """

    name: str = Field(
        default="", pattern=rf"{_STEP}|^$", description="In metrics and errors; else its kind."
    )
    inputs: dict[Name, Name] = Field(
        default_factory=dict, description="The step's own name of an input: the tensor it reads."
    )
    outputs: dict[Name, Name] = Field(
        default_factory=dict, description="The step's own name of an output: what it is called."
    )


class FunctionSpec(SpecModel):
    """A Python function on arrays: of its author's code, so the model needs an explicit allow."""

    kind: Literal["python"]
    name: str = Field(default="", pattern=rf"{_STEP}|^$")
    function: str = Field(
        pattern=_FUNCTION, description="FILE.py:NAME; takes a dict of arrays and returns one."
    )
    inputs: dict[Name, Declared] = Field(min_length=1, max_length=1024)
    outputs: dict[Name, Declared] = Field(min_length=1, max_length=1024)


class TokenizerSpec(StepSpec):
    """Text to token ids, by a `tokenizer.json` of Hugging Face's Tokenizers."""

    kind: Literal["tokenizer"]
    file: File = Field(default="tokenizer.json")
    max_length: int = Field(
        default=512, ge=1, le=1 << 20, description="Longer texts are cut. Unit: tokens."
    )
    datatype: Literal["INT64", "INT32"] = Field(default="INT64")


class ModelStepSpec(StepSpec):
    """A model of any format that a runtime here loads, or another pipeline."""

    kind: Literal["model"]
    path: File = Field(description="A file or directory beside `pipeline.yaml`.")
    runtime: str = Field(default="", pattern=r"^[a-z0-9_]{0,64}$")


class PoolSpec(StepSpec):
    """Token vectors [rows, tokens, size] to one vector a row."""

    kind: Literal["pool"]
    mode: Literal["mean", "first", "max"] = Field(
        default="mean", description="Over the tokens that the mask names; `first` is the first one."
    )
    normalize: bool = Field(default=False, description="To length 1.")


class FeaturesStepSpec(StepSpec):
    """Features of the entities that a row names, from the endpoint's online store.

    Where nothing is bound, as in training, the columns themselves are taken from the caller.
    """

    kind: Literal["features"]
    service: str = Field(min_length=1, max_length=128, description="The feature service's name.")
    columns: dict[Name, Literal["FP32", "FP64", "INT64", "BOOL", "BYTES"]] = Field(
        min_length=1,
        max_length=4096,
        description="What the service gives, in its order; another service is refused.",
    )
    matrices: dict[Name, Names] = Field(
        default_factory=dict,
        description="FP32 [-1, columns] of columns and of values that come with the request; a "
        "column that is in none is given by itself.",
    )


AnyStepSpec = Annotated[
    FunctionSpec | TokenizerSpec | ModelStepSpec | PoolSpec | FeaturesStepSpec,
    Field(discriminator="kind"),
]


class PipelineSpec(SpecModel):
    """The whole of `pipeline.yaml`."""

    version: Literal[1] = 1
    steps: Annotated[tuple[AnyStepSpec, ...], Strict(strict=False)] = Field(
        min_length=1, max_length=MAX_STEPS
    )
    outputs: Names | None = Field(
        default=None,
        min_length=1,
        max_length=1024,
        description="What a caller gets, in this order. Null: what the last step gives.",
    )


def read_spec(directory: Path) -> PipelineSpec:
    """What the `pipeline.yaml` in a directory says.

    Raises:
        UnsupportedModelError: It cannot be read, or with every mistake in it.
    """
    path = directory / FILE_NAME
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnsupportedModelError(f"{path}: is no UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise UnsupportedModelError(f"{path}: {error.strerror}") from error
    try:
        return parse_spec(text)
    except SpecError as error:
        raise UnsupportedModelError(f"{path}: {error}") from None


def parse_spec(source: str | Mapping[str, Any]) -> PipelineSpec:
    """The pipeline that YAML text, or plain data, says.

    Raises:
        SpecError: With every mistake, its place, and its line if `source` is text.
    """
    value: Any = source
    lines: Mapping[tuple[str | int, ...], int] = {}
    mistakes: list[SpecMistake] = []
    if isinstance(source, str):
        document = read_yaml(source)
        value, lines, mistakes = document.value, document.lines, document.mistakes
        if mistakes and value is None:
            raise SpecError(mistakes)
    if not isinstance(value, Mapping):
        message = f"has to be a mapping with 'steps', but is {shown(value)}"
        raise SpecError([*mistakes, SpecMistake(place="", message=message)])
    try:
        spec = PipelineSpec.model_validate(value)
    except ValidationError as error:
        found = [_without_kind(mistake) for mistake in mistakes_of(error, PipelineSpec)]
        mistakes += [with_line(mistake, lines) for mistake in found]
        raise SpecError(sorted(mistakes, key=lambda mistake: mistake.line or 0)) from None
    if mistakes:
        raise SpecError(mistakes)
    return spec


def tensor_specs(declared: Mapping[str, tuple[Datatype, tuple[int, ...]]]) -> list[TensorSpec]:
    """Tensors as a step of Python declares them."""
    return [
        TensorSpec(name=name, datatype=datatype, shape=shape)
        for name, (datatype, shape) in declared.items()
    ]


def _without_kind(mistake: SpecMistake) -> SpecMistake:
    """`steps[0].model.path` as it stands in the file: `steps[0].path`."""
    place = re.sub(r"^(steps\[\d+\])\.[a-z]+(?=\.)", r"\1", mistake.place)
    return SpecMistake(place=place, message=mistake.message)
