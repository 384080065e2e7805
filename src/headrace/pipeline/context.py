"""Context for opening a step: its directory, its loader of models, and the earlier steps.

A tokenizer pads a batch to its longest row, and the model would also compute the padding. Rows of
similar lengths are run together instead, each group cut to its longest row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from headrace.core import (
    Array,
    HeadraceError,
    ModelSignature,
    Tensors,
    TensorSpec,
    UnsupportedModelError,
)
from headrace.runtimes import (
    LoadOptions,
    Model,
    VerifiedPadding,
    detect_runtime,
    find_padding,
    get_runtime,
    mask_input,
    runs_code,
)

MAX_RATIO: Final = 1.1
"""Largest ratio of padded to real size of a group, beyond the few tokens of `_SLACK`."""
_SLACK: Final = 2


class ByLength:
    """Model that runs another one on groups of rows of similar lengths. Implements `Model`."""

    def __init__(self, model: Model, padding: VerifiedPadding, mask: str) -> None:
        self.signature: ModelSignature = model.signature
        self.concurrent = model.concurrent
        self.device = getattr(model, "device", None)
        self.intra_op_threads: int | None = getattr(model, "intra_op_threads", None)
        self._model = model
        self._axis = padding.settings.axis
        self._mask = mask
        self._output_axes = padding.length_axes

    @classmethod
    def around(cls, model: Model) -> "Model":
        """Return `model` wrapped in this class if padding is proved harmless, else `model`."""
        mask = mask_input(model.signature)
        padding = None if mask is None else find_padding(model)
        return model if mask is None or padding is None else cls(model, padding, mask)

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:
        """Run one batch in groups."""
        mask = inputs[self._mask]
        rows, longest = mask.shape[0], mask.shape[self._axis]
        lengths = _lengths(mask, self._axis)
        if rows == 1 or not longest or lengths is None:
            return self._model.run(inputs, outputs)
        order = np.argsort(lengths, kind="stable")
        groups = _groups(lengths[order])
        if len(groups) == 1 and int(lengths[order[-1]]) == longest:
            return self._model.run(inputs, outputs)
        merged: Tensors = {}
        for start, end in groups:
            selected = order[start:end]
            size = max(int(lengths[selected[-1]]), 1)
            answers = self._model.run(self._cut(inputs, selected, size, longest), outputs)
            for name, array in answers.items():
                self._place(merged, name, array, selected, rows, longest)
        return merged

    def close(self) -> None:
        """Close the model."""
        self._model.close()

    def _cut(self, inputs: Tensors, rows: Array, size: int, longest: int) -> Tensors:
        index = (slice(None),) * self._axis + (slice(size),)
        cut = {}
        for name, array in inputs.items():
            selected = array[rows]
            if selected.ndim > self._axis and selected.shape[self._axis] == longest:
                selected = selected[index]
            cut[name] = np.ascontiguousarray(selected)
        return cut

    def _place(  # noqa: PLR0917  # one loop's body
        self, merged: Tensors, name: str, array: Array, rows: Array, total: int, longest: int
    ) -> None:
        axes = self._output_axes.get(name, ())
        if name not in merged:
            shape = [longest if axis in axes else n for axis, n in enumerate(array.shape)]
            merged[name] = np.zeros((total, *shape[1:]), array.dtype)
        if axes:
            index: tuple[Any, ...] = (rows, *(slice(n) for n in array.shape[1:]))
            merged[name][index] = array
        else:
            merged[name][rows] = array


def _lengths(mask: Array, axis: int) -> Array | None:
    """Return each row's length if the mask's ones come first; None for another form."""
    if mask.ndim != axis + 1 or axis != 1:
        return None
    real = mask != 0
    lengths: Array = real.sum(axis=1)
    is_front = (real == (np.arange(mask.shape[1]) < lengths[:, np.newaxis])).all()
    return lengths if is_front else None


def _groups(lengths: Array) -> list[tuple[int, int]]:
    """Return the bounds of groups of rows, sorted by length, that are worth running together."""
    groups = []
    start, real = 0, 0
    for i, length in enumerate(lengths.tolist()):
        rows = i - start
        if rows and length * (rows + 1) > (real + length) * MAX_RATIO + _SLACK * (rows + 1):
            groups.append((start, i))
            start, real = i, 0
        real += length
    return [*groups, (start, len(lengths))]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepContext:
    """Context for opening a step: location of its files, load options, and earlier tensors."""

    directory: Path
    options: LoadOptions
    tensors: Mapping[str, TensorSpec]
    """Tensors that earlier steps give, by the pipeline's names."""
    loaded: Mapping[str, Model] = field(default_factory=dict)
    """Models that are loaded already, by path."""

    def file(self, name: str) -> Path:
        """Return the path of a step's file, which must be in the pipeline's directory.

        Raises:
            UnsupportedModelError: It is outside of it, or does not exist.
        """
        return file_in(self.directory, name)

    def tensor(self, own: str, inputs: Mapping[str, str]) -> TensorSpec:
        """Return the tensor that a step reads as `own`, if the step's kind depends on it.

        Raises:
            UnsupportedModelError: No earlier step gives it.
        """
        name = inputs.get(own, own)
        there = self.tensors.get(name)
        if there is None:
            msg = (
                f"no earlier step outputs '{name}'; there are: {', '.join(self.tensors) or 'none'}"
            )
            raise UnsupportedModelError(f"{msg}; map it, as in inputs: {{{own}: NAME}}")
        return there

    def model(self, name: str, runtime: str = "") -> Model:
        """Load a model beside `pipeline.yaml`, prepared for rows of different lengths.

        Raises:
            UnsupportedModelError: It cannot be loaded.
        """
        if (model := self.loaded.get(name)) is None:
            path = _model_in(self.directory, name)
            plugin = get_runtime(runtime) if runtime else detect_runtime(path)
            model = plugin.load(path, self.options)
        try:
            return ByLength.around(model)
        except HeadraceError:
            model.close()
            raise


def file_in(directory: Path, name: str) -> Path:
    """Return the path of a step's file, which must be in the pipeline's directory.

    Raises:
        UnsupportedModelError: It is outside of it, or does not exist.
    """
    path = directory / name
    if not path.resolve().is_relative_to(directory.resolve()) or Path(name).is_absolute():
        msg = (
            f"'{name}' is outside the pipeline's directory; only files in that directory are pushed"
        )
        raise UnsupportedModelError(msg)
    if not path.exists():
        raise UnsupportedModelError(f"'{name}' does not exist beside pipeline.yaml")
    return path


def code_of(directory: Path, name: str, runtime: str = "") -> str:
    """Return the runtime by which a step's model runs code; empty if it runs none."""
    path = _model_in(directory, name)
    plugin = get_runtime(runtime) if runtime else detect_runtime(path)
    return plugin.name if runs_code(plugin, path) else ""


def _model_in(directory: Path, name: str) -> Path:
    path = file_in(directory, name)
    if path.resolve() == directory.resolve():
        raise UnsupportedModelError("a pipeline cannot be a step of a pipeline")
    return path
