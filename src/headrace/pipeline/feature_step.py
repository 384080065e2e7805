"""Steps that look up features: entity keys in, features out.

Values that are not features come with the request: a caller sends keys and values together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

import numpy as np

from headrace.core import (
    VARIABLE,
    Array,
    Datatype,
    FeatureSource,
    FetchedFeatures,
    InvalidArgumentError,
    ModelSignature,
    Tensors,
    TensorSpec,
    UnsupportedModelError,
)
from headrace.pipeline.pipeline import Pipeline, PipelineStep
from headrace.runtimes import Model

if TYPE_CHECKING:
    from headrace.pipeline.spec import FeaturesStepSpec

STATUS_SUFFIX: Final = "__status"
_MATRIX: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembly:
    """One input tensor of the model, built from one column or several adjacent ones."""

    spec: TensorSpec
    """The model's declaration, of shape [-1], [-1, 1] or [-1, columns]."""
    columns: tuple[str, ...]

    def make(self, columns: Mapping[str, Array], rows: int) -> Array:
        """Return the tensor for `rows` rows."""
        dtype = self.spec.datatype.dtype
        if len(self.columns) == 1:
            column = columns[self.columns[0]].astype(dtype, copy=False)
            return column if len(self.spec.shape) == 1 else column.reshape(rows, 1)
        matrix = np.empty((rows, len(self.columns)), dtype)
        for i, name in enumerate(self.columns):
            matrix[:, i] = columns[name]
        return matrix


@runtime_checkable
class RowSource(Protocol):
    """A source with a faster path for one row."""

    def fetch_row(
        self, keys: Tensors, request: Tensors, *, deadline: float | None = None
    ) -> list[float] | FetchedFeatures:
        """Return the same as `FeatureSource.fetch`, or only the numbers of all columns in order."""


class FeatureStep:
    """Step that fetches features and builds the model's inputs from them. Implements `Model`.

    Args:
        assemblies: The output tensors; None for one per column.
        show_status: Whether to output `VIEW__status` of each view too.
    """

    concurrent = True
    takes_deadline = True
    takes_features = True

    def __init__(
        self,
        source: FeatureSource,
        assemblies: Sequence[Assembly] | None = None,
        *,
        show_status: bool = False,
    ) -> None:
        self.source = source
        self.may_wait = source.may_wait
        self._assemblies = (
            [Assembly(spec=spec, columns=(spec.name,)) for spec in source.columns]
            if assemblies is None
            else list(assemblies)
        )
        self._values = request_values(self._assemblies, source)
        self._status = [f"{view}{STATUS_SUFFIX}" for view in source.views] if show_status else []
        self._places = self._places_of_row()
        self._row = source if self._places and isinstance(source, RowSource) else None
        self.signature = ModelSignature(
            inputs=(*source.keys, *source.request, *self._values),
            outputs=(
                *(assembly.spec for assembly in self._assemblies),
                *(
                    TensorSpec(name=name, datatype=Datatype.BYTES, shape=(VARIABLE,))
                    for name in self._status
                ),
            ),
            batched=True,
        )

    def _places_of_row(self) -> list[int]:
        """Return each column's feature index in the only matrix, -1 for a value; else empty."""
        if len(self._assemblies) != 1 or self._status:
            return []
        (assembly,) = self._assemblies
        is_float = assembly.spec.datatype.dtype.kind == "f"
        if not is_float or len(assembly.spec.shape) != _MATRIX or len(assembly.columns) == 1:
            return []
        features = [spec.name for spec in self.source.columns]
        return [features.index(name) if name in features else -1 for name in assembly.columns]

    @property
    def counts(self) -> object:
        """Return the counters of the source, if it has any."""
        return getattr(self.source, "counts", None)

    @property
    def status_outputs(self) -> tuple[str, ...]:
        """Names of the outputs with the lookup status of views."""
        return tuple(self._status)

    def run(
        self,
        inputs: Tensors,
        outputs: Sequence[str] | None = None,
        *,
        deadline: float | None = None,
    ) -> Tensors:
        """Fetch the features of one batch."""
        del outputs
        keys = {spec.name: inputs[spec.name] for spec in self.source.keys}
        rows = len(next(iter(keys.values())))
        request = {spec.name: inputs[spec.name] for spec in self.source.request}
        if rows == 1 and self._row is not None:
            row = self._row.fetch_row(keys, request, deadline=deadline)
            if isinstance(row, list):
                # The model's only matrix, for one row whose features are numbers.
                (assembly,) = self._assemblies
                cells = [
                    row[position] if position >= 0 else inputs[name].item(0)
                    for position, name in zip(self._places, assembly.columns, strict=True)
                ]
                with np.errstate(over="ignore"):  # a double beyond FP32's range becomes infinite
                    return {assembly.spec.name: np.array([cells], assembly.spec.datatype.dtype)}
            return self._of(row, request, inputs, rows)
        fetched = self.source.fetch(keys, request, deadline=deadline)
        return self._of(fetched, request, inputs, rows)

    def _of(
        self, fetched: FetchedFeatures, request: Tensors, inputs: Tensors, rows: int
    ) -> Tensors:
        columns = fetched.columns | request
        columns |= {spec.name: inputs[spec.name] for spec in self._values}
        with np.errstate(over="ignore"):  # as above
            tensors = {
                assembly.spec.name: assembly.make(columns, rows) for assembly in self._assemblies
            }
        for name, view in zip(self._status, self.source.views, strict=False):
            tensors[name] = fetched.statuses[view]
        return tensors

    def close(self) -> None:
        """Close the source."""
        self.source.close()


def with_features(
    model: Model,
    source: FeatureSource,
    inputs: Mapping[str, Sequence[str]],
    *,
    show_status: bool = False,
) -> Pipeline:
    """Return `model` behind a feature step, so that it takes entity keys in place of features.

    Args:
        inputs: See `plan_assemblies`.

    Raises:
        InvalidArgumentError: The service's columns do not fit the model.
    """
    assemblies = plan_assemblies(
        model.signature, keys=source.keys, columns=source.columns, inputs=inputs
    )
    step = FeatureStep(source, assemblies, show_status=show_status)
    names = [spec.name for spec in model.signature.outputs]
    return Pipeline(
        [_step("features", step), _step("model", model)], [*names, *step.status_outputs]
    )


def plan_assemblies(
    signature: ModelSignature,
    *,
    keys: Sequence[TensorSpec],
    columns: Sequence[TensorSpec],
    inputs: Mapping[str, Sequence[str]],
) -> list[Assembly]:
    """Return which columns form each input of a model, checked against its signature.

    Args:
        inputs: By input, its columns in order: features, or values that the caller sends. Empty:
            columns go to inputs of the same name; if there are none, to the only input that is a
            matrix, in training order if the model stores it (columns that are not features then
            come with the request), else all of them in the service's order.

    Raises:
        InvalidArgumentError: They do not fit; the message lists what the model takes.
    """
    if not signature.batched:
        raise InvalidArgumentError("the model is not batched, so its rows cannot be entities")
    selected = {name: tuple(some) for name, some in inputs.items()} or _by_itself(
        signature, columns
    )
    columns_by_name = {spec.name: spec for spec in columns}
    assemblies = []
    for name, some in selected.items():
        spec = signature.input(name)
        if spec is None:
            raise InvalidArgumentError(f"the model has no input '{name}'; {_takes(signature)}")
        check_fit(spec, some, columns_by_name, {key.name for key in keys})
        # Compare the order with that of the training, if the model stores it.
        trained = signature.columns.get(name, ())
        for i, (actual, expected) in enumerate(zip(some, trained, strict=False)):
            if actual != expected:
                msg = (
                    f"column {i + 1} of input '{spec.name}' was '{expected}' in training, but "
                    f"would now be '{actual}'; the order is {', '.join(trained)[:300]}"
                )
                raise InvalidArgumentError(msg)
        assemblies.append(Assembly(spec=spec, columns=some))
    used = {column for assembly in assemblies for column in assembly.columns}
    if not used & columns_by_name.keys():
        raise InvalidArgumentError("no input of the model takes features")
    return assemblies


def request_values(assemblies: Sequence[Assembly], source: FeatureSource) -> tuple[TensorSpec, ...]:
    """Return the caller's values for the model alone: neither features nor inputs of features."""
    features = {spec.name for spec in (*source.columns, *source.request)}
    values: dict[str, TensorSpec] = {}
    for assembly in assemblies:
        for name in assembly.columns:
            if name not in features:
                values[name] = TensorSpec(
                    name=name, datatype=assembly.spec.datatype, shape=(VARIABLE,)
                )
    return tuple(values.values())


def _by_itself(
    signature: ModelSignature, columns: Sequence[TensorSpec]
) -> dict[str, tuple[str, ...]]:
    names = [spec.name for spec in columns]
    if all(signature.input(name) is not None for name in names):
        return {name: (name,) for name in names}
    matrices = [
        spec
        for spec in signature.inputs
        if len(spec.shape) == _MATRIX and spec.datatype is not Datatype.BYTES
    ]
    if len(matrices) == 1:
        trained = signature.columns.get(matrices[0].name, ())
        unknown = [name for name in names if name not in trained]
        if trained and unknown:
            msg = (
                f"the model was not trained with {', '.join(unknown)[:200]}, but with "
                f"{', '.join(trained)[:300]}"
            )
            raise InvalidArgumentError(msg)
        return {matrices[0].name: trained or tuple(names)}
    msg = (
        f"the inputs for the features ({', '.join(names)[:300]}) are ambiguous: "
        f"{_takes(signature)}; map them, as in inputs: {{NAME: [COLUMN, ...]}}"
    )
    raise InvalidArgumentError(msg)


def check_fit(
    spec: TensorSpec,
    columns: Sequence[str],
    features: Mapping[str, TensorSpec],
    keys: set[str],
) -> None:
    """Raise InvalidArgumentError unless a tensor of `spec` can be built from `columns`.

    Args:
        features: The features by name; other columns are values of the caller.
        keys: The join keys, which are neither.
    """
    subject = f"input '{spec.name}' of the model"
    if len(set(columns)) < len(columns):
        twice = next(name for name in columns if columns.count(name) > 1)
        raise InvalidArgumentError(f"{subject} has the column '{twice}' twice")
    for name in columns:
        if name in keys and name not in features:
            msg = f"{subject} has the column '{name}', which is a join key; give it another name"
            raise InvalidArgumentError(msg)
    width = spec.shape[1] if len(spec.shape) == _MATRIX else 1
    if len(spec.shape) > _MATRIX or width not in {VARIABLE, len(columns)}:
        msg = (
            f"{subject} has the shape {list(spec.shape)}, but {len(columns)} columns are "
            f"mapped to it ({', '.join(columns)[:300]})"
        )
        raise InvalidArgumentError(msg)
    for name in columns:
        column = features.get(name)
        if column is not None and not _converts(column.datatype, spec.datatype):
            msg = (
                f"{subject} is {spec.datatype}, to which '{name}' ({column.datatype}) cannot"
                " be converted"
            )
            raise InvalidArgumentError(msg)


def _converts(column: Datatype, target: Datatype) -> bool:
    """Whether values keep their meaning: numbers may become floats; other types must be equal."""
    if Datatype.BYTES in {column, target}:
        return column is target
    if target.dtype.kind == "f":
        return True
    return bool(np.can_cast(column.dtype, target.dtype, "safe"))


def _takes(signature: ModelSignature) -> str:
    shown = (f"{spec.name} {spec.datatype} {list(spec.shape)}" for spec in signature.inputs)
    return f"it takes {', '.join(shown)[:500]}"


def _step(name: str, model: Model) -> PipelineStep:
    signature = model.signature
    return PipelineStep(
        name=name,
        model=model,
        reads={spec.name: spec.name for spec in signature.inputs},
        writes={spec.name: spec.name for spec in signature.outputs},
    )


class GivenFeatures:
    """Columns sent by the caller, as in training. Implements `FeatureSource`."""

    may_wait = False
    views: tuple[str, ...] = ()
    request: tuple[TensorSpec, ...] = ()

    def __init__(self, service: str, columns: Sequence[TensorSpec]) -> None:
        self.service = service
        self.keys = self.columns = tuple(columns)

    def fetch(
        self, keys: Tensors, request: Tensors, *, deadline: float | None = None
    ) -> FetchedFeatures:
        """Return the columns of the request."""
        del request, deadline
        return FetchedFeatures(columns=dict(keys), statuses={})

    def close(self) -> None:
        """Do nothing; the source holds no resources."""


def open_features(spec: "FeaturesStepSpec", source: FeatureSource | None) -> FeatureStep:
    """Return the step that a pipeline names, on the bound features or on the caller's columns.

    Raises:
        UnsupportedModelError: The bound service differs from the one that the pipeline was made
            with.
    """
    columns = _declared(spec)
    if source is None:
        source = GivenFeatures(spec.service, columns)
    else:
        check_service(spec, source.service, source.columns)
    together = {name for names in spec.matrices.values() for name in names}
    assemblies = [
        Assembly(spec=column, columns=(column.name,))
        for column in columns
        if column.name not in together
    ]
    for name, some in spec.matrices.items():
        shape = (VARIABLE, len(some))
        matrix = TensorSpec(name=name, datatype=Datatype.FP32, shape=shape)
        features = {column.name: column for column in columns}
        check_fit(matrix, some, features, {key.name for key in source.keys})
        assemblies.append(Assembly(spec=matrix, columns=some))
    return FeatureStep(source, assemblies)


def check_service(spec: "FeaturesStepSpec", service: str, columns: Sequence[TensorSpec]) -> None:
    """Compare a service with the one that a pipeline was made with.

    Raises:
        UnsupportedModelError: They differ; the message names the first different column.
    """
    if service != spec.service:
        msg = f"it takes features of the service '{spec.service}', but '{service}' is bound"
        raise UnsupportedModelError(msg)
    declared = _declared(spec)
    if tuple(columns) != declared:
        raise UnsupportedModelError(_other_columns(spec.service, declared, columns))


def _declared(spec: "FeaturesStepSpec") -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name=name, datatype=Datatype(datatype), shape=(VARIABLE,))
        for name, datatype in spec.columns.items()
    )


def _other_columns(
    service: str, declared: Sequence[TensorSpec], offered: Sequence[TensorSpec]
) -> str:
    """Return the first difference between a service's columns and those a model was made with."""
    pairs = zip_longest(declared, offered)
    index, (expected, actual) = next((i, p) for i, p in enumerate(pairs) if p[0] != p[1])
    shown = ["nothing" if s is None else f"{s.name} {s.datatype}" for s in (expected, actual)]
    return (
        f"feature service '{service}' differs from the one that the model was trained with: "
        f"column {index + 1} is {shown[1]}, and was {shown[0]}; train again with the current"
        " service, or bind the former one"
    )
