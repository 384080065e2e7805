"""Plain data and rules: names, tensors, requests, errors, settings. Imports no sibling.

The exceptions are `processes` and `confine`, which start and restrict child processes for all other
packages.

Names that need NumPy are loaded on first use: most commands never use them.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from headrace.core.clock import Clock, SystemClock
from headrace.core.error_kind import error_kind
from headrace.core.errors import (
    AlreadyExistsError,
    ArtifactCorruptError,
    Code,
    CodeNotAllowedError,
    ConflictError,
    DeadlineExceededError,
    EndpointNotFoundError,
    FailedPreconditionError,
    FeaturesUnavailableError,
    HeadraceError,
    InvalidArgumentError,
    ModelNotFoundError,
    ModelNotReadyError,
    NotFoundError,
    NotSignedError,
    OverloadedError,
    PayloadTooLargeError,
    PermissionDeniedError,
    RequestCancelledError,
    RuntimeFailedError,
    UnauthenticatedError,
    UnavailableError,
    UnsupportedError,
    UnsupportedModelError,
)
from headrace.core.feature_settings import FeatureLookup, FeatureWatch, OnUnavailable
from headrace.core.names import (
    NAME_PATTERN,
    VERSION_PATTERN,
    Digest,
    EndpointName,
    ModelName,
    check_name,
    check_version,
)
from headrace.core.settings import (
    DEFAULT_MAX_BODY_BYTES,
    ArtifactsSettings,
    BatchingSpec,
    NullPolicy,
    PaddingSpec,
    PoolReplicaSettings,
    ReplicaSettings,
    SignedSettings,
)
from headrace.core.text import span

if TYPE_CHECKING:
    from headrace.core.datatypes import DTYPES, Datatype, datatype_of
    from headrace.core.examples import example_inputs
    from headrace.core.feature_source import FeatureSource, FetchedFeatures
    from headrace.core.inspection import CancellableInspect, FirstRun, Inspect, Inspected
    from headrace.core.requests import (
        BatchOutputs,
        InferRequest,
        InferResponse,
        Packed,
        Parameter,
        Parameters,
        RequestedOutput,
        RequestRows,
        arrays_of,
    )
    from headrace.core.signature import (
        VARIABLE,
        Array,
        ExampleValue,
        ModelSignature,
        RowIndependence,
        Tensors,
        TensorSpec,
        check_inputs,
        with_weakest_evidence,
        wrong_datatype,
        wrong_shape,
    )

__all__ = [
    "DEFAULT_MAX_BODY_BYTES",
    "DTYPES",
    "NAME_PATTERN",
    "VARIABLE",
    "VERSION_PATTERN",
    "AlreadyExistsError",
    "Array",
    "ArtifactCorruptError",
    "ArtifactsSettings",
    "BatchOutputs",
    "BatchingSpec",
    "CancellableInspect",
    "Clock",
    "Code",
    "CodeNotAllowedError",
    "ConflictError",
    "Datatype",
    "DeadlineExceededError",
    "Digest",
    "EndpointName",
    "EndpointNotFoundError",
    "ExampleValue",
    "FailedPreconditionError",
    "FeatureLookup",
    "FeatureSource",
    "FeatureWatch",
    "FeaturesUnavailableError",
    "FetchedFeatures",
    "FirstRun",
    "HeadraceError",
    "InferRequest",
    "InferResponse",
    "Inspect",
    "Inspected",
    "InvalidArgumentError",
    "ModelName",
    "ModelNotFoundError",
    "ModelNotReadyError",
    "ModelSignature",
    "NotFoundError",
    "NotSignedError",
    "NullPolicy",
    "OnUnavailable",
    "OverloadedError",
    "Packed",
    "PaddingSpec",
    "Parameter",
    "Parameters",
    "PayloadTooLargeError",
    "PermissionDeniedError",
    "PoolReplicaSettings",
    "ReplicaSettings",
    "RequestCancelledError",
    "RequestRows",
    "RequestedOutput",
    "RowIndependence",
    "RuntimeFailedError",
    "SignedSettings",
    "SystemClock",
    "TensorSpec",
    "Tensors",
    "UnauthenticatedError",
    "UnavailableError",
    "UnsupportedError",
    "UnsupportedModelError",
    "arrays_of",
    "check_inputs",
    "check_name",
    "check_version",
    "datatype_of",
    "error_kind",
    "example_inputs",
    "span",
    "with_weakest_evidence",
    "wrong_datatype",
    "wrong_shape",
]

_WITH_NUMPY = {
    "datatypes": ("DTYPES", "Datatype", "datatype_of"),
    "examples": ("example_inputs",),
    "feature_source": ("FeatureSource", "FetchedFeatures"),
    "inspection": ("CancellableInspect", "FirstRun", "Inspect", "Inspected"),
    "requests": (
        "BatchOutputs",
        "InferRequest",
        "InferResponse",
        "Packed",
        "Parameter",
        "Parameters",
        "RequestRows",
        "RequestedOutput",
        "arrays_of",
    ),
    "signature": (
        "Array",
        "ExampleValue",
        "ModelSignature",
        "RowIndependence",
        "TensorSpec",
        "Tensors",
        "VARIABLE",
        "check_inputs",
        "with_weakest_evidence",
        "wrong_datatype",
        "wrong_shape",
    ),
}


def __getattr__(name: str) -> object:
    for module, names in _WITH_NUMPY.items():
        if name in names:
            return getattr(import_module(f"headrace.core.{module}"), name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
