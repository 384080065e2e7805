"""Schema of `pipeline.yaml`; the parser reports all mistakes at once, each with its line."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, Strict, ValidationError, model_validator

from headrace.core import Datatype, TensorSpec, UnsupportedModelError
from headrace.core.spec.base import SpecModel
from headrace.core.spec.mistakes import SpecError, mistakes_of, with_line, without_keys
from headrace.core.spec.yaml import MAX_BYTES, SpecMistake, read_yaml
from headrace.pipeline.runtime import FILE_NAME

MAX_LABELS: Final = 1 << 20
_MAX_DIMENSION: Final = 1 << 31
_NAME: Final = r"^[A-Za-z_][A-Za-z0-9_.:/-]{0,127}$"
_FUNCTION: Final = r"^[A-Za-z0-9_./-]{1,255}\.py:[A-Za-z_][A-Za-z0-9_]{0,127}$"
_STEP: Final = r"^[a-z][a-z0-9_-]{0,63}$"
Name = Annotated[str, Field(pattern=_NAME)]
Names = Annotated[tuple[Name, ...], Strict(strict=False)]
File = Annotated[str, Field(min_length=1, max_length=1024)]
Paths = Annotated[tuple[File, ...], Strict(strict=False)]
Weight = Annotated[float, Field(ge=0.0, le=1e6)]
Label = Annotated[str, Field(min_length=1, max_length=1024)]
Side = Annotated[int, Field(ge=1, le=4096)]
Size = Annotated[tuple[Side, Side], Strict(strict=False)]
Channels = Annotated[
    tuple[Annotated[float, Field(ge=-1e6, le=1e6)], ...], Field(max_length=3), Strict(strict=False)
]
ImageFormat = Literal["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"]
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
    """Fields common to all steps.

    A step has its own names for its inputs and outputs; `inputs` and `outputs` map them to the
    names that other steps use. Unmapped names stay the same.
    """

    name: str = Field(
        default="",
        pattern=rf"{_STEP}|^$",
        description="Name in metrics and errors. Empty: the kind.",
    )
    inputs: dict[Name, Name] = Field(
        default_factory=dict,
        description="Per input of the step, the pipeline tensor that it reads.",
    )
    outputs: dict[Name, Name] = Field(
        default_factory=dict, description="Per output of the step, its name in the pipeline."
    )


class FunctionSpec(SpecModel):
    """A Python function on arrays: its author's code, so the model needs an explicit allow."""

    kind: Literal["python"]
    name: str = Field(default="", pattern=rf"{_STEP}|^$")
    function: str = Field(
        pattern=_FUNCTION,
        description="FILE.py:NAME of a function that takes and returns a dict of arrays.",
    )
    inputs: dict[Name, Declared] = Field(min_length=1, max_length=1024)
    outputs: dict[Name, Declared] = Field(min_length=1, max_length=1024)


class TokenizerSpec(StepSpec):
    """Text to token ids, by a `tokenizer.json` of Hugging Face's Tokenizers."""

    kind: Literal["tokenizer"]
    file: File = Field(default="tokenizer.json")
    max_length: int = Field(
        default=512, ge=1, le=1 << 20, description="Longer texts are truncated. Unit: tokens."
    )
    datatype: Literal["INT64", "INT32"] = Field(default="INT64")
    offsets: bool = Field(
        default=False,
        description="Also outputs `offsets` [N, tokens, 2], which a step `entities` reads: the "
        "characters of each token; -1 for special tokens.",
    )
    pairs: bool = Field(
        default=False,
        description="Each row is a pair: the step also reads `text_pair`, as cross-encoders need. "
        "The longer text of a long pair is truncated first.",
    )

    @model_validator(mode="after")
    def _outputs_agree(self) -> Self:
        if self.offsets and self.pairs:
            raise ValueError("'offsets' and 'pairs' exclude each other")
        return self


class ModelStepSpec(StepSpec):
    """A model of any format that an installed runtime loads, or another pipeline."""

    kind: Literal["model"]
    path: File = Field(description="A file or directory beside `pipeline.yaml`.")
    runtime: str = Field(default="", pattern=r"^[a-z0-9_]{0,64}$")


class PoolingSpec(StepSpec):
    """Token vectors [rows, tokens, size] to one vector per row."""

    kind: Literal["pool"]
    mode: Literal["mean", "first", "max"] = Field(
        default="mean",
        description="Pools over the tokens in the mask; `first` takes the first one.",
    )
    normalize: bool = Field(default=False, description="Normalizes the result to length 1.")


class ImageSpec(StepSpec):
    """Encoded images to pixels, processed as in the model's training. Needs the extra `image`."""

    kind: Literal["image"]
    size: Size = Field(description="Height and width of the model's input. Unit: pixels.")
    resize: Literal["stretch", "crop", "pad"] = Field(
        default="stretch",
        description="`crop` keeps the center, `pad` keeps all and fills the rest.",
    )
    shorter_side: Side | None = Field(
        default=None,
        description="With `crop`: the size to which the shorter side is resized first, 256 for a "
        "size of 224 as in ImageNet evaluation. Null: the largest crop. Unit: pixels.",
    )
    stretched: Size | None = Field(
        default=None,
        description="With `crop`: the height and width to which the image is stretched first, as "
        "for DeiT. Null: the aspect ratio is retained. Unit: pixels.",
    )
    crop_rounding: Literal["even", "down"] = Field(
        default="even",
        description="With `crop`: rounding of half a pixel in the crop's corner: `even` as "
        "torchvision, `down` as transformers.",
    )
    fill: Annotated[int, Field(ge=0, le=255)] = Field(
        default=0, description="With `pad`: the value of all channels in the padding."
    )
    interpolation: Literal["nearest", "bilinear", "bicubic"] = Field(default="bilinear")
    color: Literal["rgb", "bgr", "gray"] = Field(default="rgb", description="`gray` has 1 channel.")
    layout: Literal["nchw", "nhwc"] = Field(default="nchw")
    datatype: Literal["FP32", "UINT8"] = Field(default="FP32")
    scale: float = Field(
        default=1 / 255, gt=0.0, le=1e6, description="Factor for values of 0 to 255."
    )
    mean: Channels = Field(
        default=(), description="Subtracted after `scale`; one value, or one per channel."
    )
    std: Channels = Field(
        default=(), description="Divisor after `mean`; one value, or one per channel."
    )
    orient: bool = Field(default=True, description="Rotates an image according to its Exif data.")
    shrink_on_load: bool = Field(
        default=False,
        description="Decodes large JPEG files at a reduced size, at least twice the target: "
        "several times as fast, with slightly different values.",
    )
    formats: Annotated[tuple[ImageFormat, ...], Strict(strict=False)] = Field(
        default=("JPEG", "PNG", "WEBP", "GIF", "BMP"), min_length=1, max_length=8
    )
    max_pixels: int = Field(
        default=50_000_000,
        ge=1,
        le=89_000_000,
        description="Limit per image; a larger one is refused before it is decoded.",
    )

    @model_validator(mode="after")
    def _settings_agree(self) -> Self:
        channels = 1 if self.color == "gray" else 3
        set_fields = self.model_fields_set
        if self.datatype == "UINT8" and set_fields & {"scale", "mean", "std"}:
            raise ValueError("'scale', 'mean' and 'std' need the datatype FP32")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in {0, 1, channels}:
                raise ValueError(f"'{name}' has {len(values)} values for {channels} channel(s)")
        if any(value <= 0 for value in self.std):
            raise ValueError("'std' must be above 0")
        if self.resize != "pad" and "fill" in set_fields:
            raise ValueError("'fill' needs resize: pad")
        return self

    @model_validator(mode="after")
    def _crop_settings_agree(self) -> Self:
        for name in ("shorter_side", "stretched", "crop_rounding"):
            if self.resize != "crop" and name in self.model_fields_set:
                raise ValueError(f"'{name}' needs resize: crop")
        if self.stretched is not None and self.shorter_side is not None:
            raise ValueError("'stretched' and 'shorter_side' exclude each other")
        if self.shorter_side is not None and self.shorter_side < max(self.size):
            raise ValueError(f"'shorter_side' is less than the size {list(self.size)}")
        if self.stretched is not None and any(map(int.__lt__, self.stretched, self.size)):
            raise ValueError(f"'stretched' is less than the size {list(self.size)}")
        return self


class VectorizerSpec(StepSpec):
    """A vectorizer or transformer of scikit-learn, saved by skops. Needs the extra `sklearn`."""

    kind: Literal["vectorizer"]
    path: File = Field(description="A `.skops` file beside `pipeline.yaml`.")
    datatype: Literal["FP32", "FP64"] = Field(
        default="FP32", description="FP64 for a scikit-learn estimator in the next step."
    )
    columns: dict[Name, Literal["BYTES", "FP64", "INT64", "BOOL"]] | None = Field(
        default=None,
        min_length=1,
        max_length=1024,
        description="For a transformer that was fitted on a data frame: its columns, one input "
        "each. Needs pandas.",
    )


class ClassifySpec(StepSpec):
    """A model's scores to class names and a confidence."""

    kind: Literal["classify"]
    labels: Annotated[tuple[Label, ...], Strict(strict=False)] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_LABELS,
        description="Labels in the model's order.",
    )
    labels_file: File | None = Field(
        default=None, description="Alternatively, a text file with one label per line."
    )
    activation: Literal["softmax", "sigmoid", "none"] = Field(
        default="softmax",
        description="Function that turns the model's outputs into probabilities; `none` if they "
        "are probabilities already.",
    )
    top_k: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Number of `labels` and `scores`, best first. Null: one `label`, one `score`.",
    )
    threshold: float | None = Field(
        default=None,
        allow_inf_nan=False,
        description="Below it, `other_label` is returned.",
    )
    other_label: Label = Field(default="other")

    @model_validator(mode="after")
    def _has_labels(self) -> Self:
        if (self.labels is None) == (self.labels_file is None):
            raise ValueError("needs either 'labels' or 'labels_file'")
        if self.threshold is None and "other_label" in self.model_fields_set:
            raise ValueError("'other_label' needs a 'threshold'")
        return self


class EntitiesSpec(StepSpec):
    """Scores of each token to the entities of a text, as JSON."""

    kind: Literal["entities"]
    labels: Annotated[tuple[Label, ...], Strict(strict=False)] = Field(
        min_length=1, max_length=MAX_LABELS, description="Labels in the model's order."
    )
    aggregation: Literal["simple", "none"] = Field(
        default="simple",
        description="`simple` joins adjacent tokens of one entity, by the prefixes B- and I-; "
        "`none` lists tokens.",
    )
    ignored: Annotated[tuple[Label, ...], Strict(strict=False)] = Field(
        default=("O",), max_length=MAX_LABELS, description="Labels that are no entities."
    )


class EnsembleSpec(StepSpec):
    """Several models on the same inputs, with combined outputs."""

    kind: Literal["ensemble"]
    models: Paths = Field(
        min_length=2, max_length=64, description="Models with the same signature."
    )
    combine: Literal["mean", "weighted", "max", "vote"] = Field(
        default="mean",
        description="`vote` is for labels: the most frequent one; in a tie the first model's.",
    )
    weights: Annotated[tuple[Weight, ...], Strict(strict=False)] = Field(
        default=(), max_length=64, description="One per model; they need not sum to 1."
    )
    combined: Names | None = Field(
        default=None, min_length=1, max_length=1024, description="Outputs to combine; null for all."
    )

    @model_validator(mode="after")
    def _weights_agree(self) -> Self:
        if (self.combine == "weighted") != bool(self.weights):
            raise ValueError("'weights' and combine: weighted must be set together")
        if self.weights and len(self.weights) != len(self.models):
            raise ValueError(f"has {len(self.weights)} weights for {len(self.models)} models")
        if self.weights and not sum(self.weights):
            raise ValueError("'weights' must not all be 0")
        return self


class CascadeSpec(StepSpec):
    """Models in order, cheap ones first: only rows that one is unsure of go on to the next."""

    kind: Literal["cascade"]
    models: Paths = Field(
        min_length=2, max_length=64, description="Models with the same signature."
    )
    confidence: Name = Field(
        description="Output with the model's confidence: one number per row, or probabilities, of "
        "which the largest counts."
    )
    threshold: float = Field(
        allow_inf_nan=False, description="Confidence from which a model's output is used."
    )


class FeaturesStepSpec(StepSpec):
    """Features of the entities that a row names, from the endpoint's online store.

    Where no service is bound, as in training, the caller sends the columns.
    """

    kind: Literal["features"]
    service: str = Field(min_length=1, max_length=128, description="Name of the feature service.")
    columns: dict[Name, Literal["FP32", "FP64", "INT64", "BOOL", "BYTES"]] = Field(
        min_length=1,
        max_length=4096,
        description="Columns of the service, in order; a service with other columns is refused.",
    )
    matrices: dict[Name, Names] = Field(
        default_factory=dict,
        description="FP32 [-1, columns] inputs made of columns and of values that come with the "
        "request; a column that is in none is an input by itself.",
    )


AnyStepSpec = Annotated[
    FunctionSpec
    | TokenizerSpec
    | VectorizerSpec
    | ImageSpec
    | ModelStepSpec
    | EnsembleSpec
    | CascadeSpec
    | PoolingSpec
    | ClassifySpec
    | EntitiesSpec
    | FeaturesStepSpec,
    Field(discriminator="kind"),
]


def tensor_specs(declared: Mapping[str, tuple[Datatype, tuple[int, ...]]]) -> list[TensorSpec]:
    """Return tensors from the declaration of a Python step."""
    return [
        TensorSpec(name=name, datatype=datatype, shape=shape)
        for name, (datatype, shape) in declared.items()
    ]


MAX_STEPS: Final = 64
_NOT_PLAIN: Final = "is not plain YAML: an alias, a tag, a duplicate key, a number, or its form"


class PipelineSpec(SpecModel):
    """Root of `pipeline.yaml`."""

    version: Literal[1] = 1
    steps: Annotated[tuple[AnyStepSpec, ...], Strict(strict=False)] = Field(
        min_length=1, max_length=MAX_STEPS
    )
    outputs: Names | None = Field(
        default=None,
        min_length=1,
        max_length=1024,
        description="Outputs of the pipeline, in this order. Null: those of the last step.",
    )


def read_spec(directory: Path) -> PipelineSpec:
    """Return the content of the `pipeline.yaml` in a directory.

    Raises:
        UnsupportedModelError: It cannot be read, or is invalid; the message lists every mistake.
    """
    path = directory / FILE_NAME
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnsupportedModelError(f"{path}: is not valid UTF-8 (byte {error.start})") from None
    except OSError as error:
        raise UnsupportedModelError(f"{path}: {error.strerror}") from error
    try:
        return parse_spec(text)
    except SpecError as error:
        raise UnsupportedModelError(f"{path}: {error}") from None


def parse_spec(source: str | Mapping[str, Any]) -> PipelineSpec:
    """Return the pipeline in YAML text or plain data.

    Messages do not quote the text, because the file may hold private content.

    Raises:
        SpecError: With every mistake, its location, and its line if `source` is text.
    """
    value: Any = source
    lines: Mapping[tuple[str | int, ...], int] = {}
    mistakes: list[SpecMistake] = []
    if isinstance(source, str):
        document = read_yaml(source)
        value, lines = document.value, document.lines
        mistakes = [
            SpecMistake(place="", message=_NOT_PLAIN, line=mistake.line)
            for mistake in document.mistakes
        ]
        if mistakes and value is None:
            raise SpecError(mistakes)
    if not isinstance(value, Mapping):
        message = f"must be a mapping with 'steps', but is {_type_of(value)}"
        raise SpecError([*mistakes, SpecMistake(place="", message=message)])
    try:
        spec = PipelineSpec.model_validate(value)
    except ValidationError as error:
        spec_mistakes = map(_without_kind, mistakes_of(error.errors(), PipelineSpec, show=_type_of))
        mistakes += [
            without_keys(with_line(mistake, lines), PipelineSpec) for mistake in spec_mistakes
        ]
        raise SpecError(sorted(mistakes, key=lambda mistake: mistake.line or 0)) from None
    if mistakes:
        raise SpecError(mistakes)
    return spec


def _type_of(value: object) -> str:
    return f"a {type(value).__name__}"


def _without_kind(mistake: SpecMistake) -> SpecMistake:
    """Return a mistake with its location in the file: `steps[0].path` for `steps[0].model.path`."""
    path = re.sub(r"^(steps\[\d+\])\.(?!kind$)[a-z]+(?=\.|$)", r"\1", mistake.place)
    return SpecMistake(place=path, message=mistake.message)
