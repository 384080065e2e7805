"""The step of `pipeline.yaml` that takes features: bound to a store, or given by the caller."""

from collections.abc import Sequence
from itertools import zip_longest

from headrace.core import (
    VARIABLE,
    Datatype,
    FeatureSource,
    FetchedFeatures,
    Tensors,
    TensorSpec,
    UnsupportedModelError,
)
from headrace.pipeline.feature_step import Assembly, FeatureStep, check_fit
from headrace.pipeline.step_specs import FeaturesStepSpec


class GivenFeatures:
    """Columns that the caller has, as training does. Implements `FeatureSource`."""

    may_wait = False
    views: tuple[str, ...] = ()
    request: tuple[TensorSpec, ...] = ()

    def __init__(self, service: str, columns: Sequence[TensorSpec]) -> None:
        self.service = service
        self.keys = self.columns = tuple(columns)

    def fetch(
        self, keys: Tensors, request: Tensors, *, deadline: float | None = None
    ) -> FetchedFeatures:
        """What it is given."""
        del request, deadline
        return FetchedFeatures(columns=dict(keys), statuses={})

    def close(self) -> None:
        """Holds nothing."""


def open_features(spec: FeaturesStepSpec, source: FeatureSource | None) -> FeatureStep:
    """The step that a pipeline names, on the features that are bound, or given by the caller.

    Raises:
        UnsupportedModelError: What is bound is not what the pipeline was made with.
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
        known = {column.name: column for column in columns}
        check_fit(matrix, some, known, {key.name for key in source.keys})
        assemblies.append(Assembly(spec=matrix, columns=some))
    return FeatureStep(source, assemblies)


def check_service(spec: FeaturesStepSpec, service: str, columns: Sequence[TensorSpec]) -> None:
    """Compare a service with the one that a pipeline was made with.

    Raises:
        UnsupportedModelError: They differ; the message names the first column that does.
    """
    if service != spec.service:
        msg = f"it takes features of '{spec.service}', but '{service}' is bound"
        raise UnsupportedModelError(msg)
    wanted = _declared(spec)
    if tuple(columns) != wanted:
        raise UnsupportedModelError(_other_columns(spec.service, wanted, columns))


def _declared(spec: FeaturesStepSpec) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name=name, datatype=Datatype(datatype), shape=(VARIABLE,))
        for name, datatype in spec.columns.items()
    )


def _other_columns(service: str, wanted: Sequence[TensorSpec], there: Sequence[TensorSpec]) -> str:
    """How the columns of a service are not those that a model was made with."""
    pairs = zip_longest(wanted, there)
    place, (want, got) = next((i, p) for i, p in enumerate(pairs) if p[0] != p[1])
    shown = ["nothing" if s is None else f"{s.name} {s.datatype}" for s in (want, got)]
    return (
        f"feature service '{service}' is not the one that the model was made with: column "
        f"{place + 1} is {shown[1]}, and was {shown[0]}; train with the service as it is, or name "
        "the one that was"
    )
