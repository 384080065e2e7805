"""`pipeline.yaml`, read with all its mistakes at once, each with its line."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, Strict, ValidationError

from headrace.core import UnsupportedModelError
from headrace.core.spec_base import SpecModel
from headrace.core.spec_mistakes import SpecError, mistakes_of, with_line, without_keys
from headrace.core.spec_yaml import MAX_BYTES, SpecMistake, read_yaml
from headrace.pipeline.runtime import FILE_NAME
from headrace.pipeline.step_specs import AnyStepSpec, Names

MAX_STEPS: Final = 64
_NOT_PLAIN: Final = "is not plain YAML: an alias, a tag, a key given twice, a number, or its form"


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

    Mistakes do not quote the text: it may be a file of anybody's.

    Raises:
        SpecError: With every mistake, its place, and its line if `source` is text.
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
        message = f"has to be a mapping with 'steps', but is {_type_of(value)}"
        raise SpecError([*mistakes, SpecMistake(place="", message=message)])
    try:
        spec = PipelineSpec.model_validate(value)
    except ValidationError as error:
        found = map(_without_kind, mistakes_of(error, PipelineSpec, show=_type_of))
        mistakes += [without_keys(with_line(one, lines), PipelineSpec) for one in found]
        raise SpecError(sorted(mistakes, key=lambda mistake: mistake.line or 0)) from None
    if mistakes:
        raise SpecError(mistakes)
    return spec


def _type_of(value: object) -> str:
    return f"a {type(value).__name__}"


def _without_kind(mistake: SpecMistake) -> SpecMistake:
    """`steps[0].model.path` as it stands in the file: `steps[0].path`."""
    place = re.sub(r"^(steps\[\d+\])\.(?!kind$)[a-z]+(?=\.|$)", r"\1", mistake.place)
    return SpecMistake(place=place, message=mistake.message)
