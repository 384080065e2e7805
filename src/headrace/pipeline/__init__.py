"""`preprocess ▸ features ▸ model ▸ postprocess` as one model. Imports `features` and below.

A pipeline is a directory with `pipeline.yaml` and the files of its steps, pushed and served like
any model. `load_pipeline` returns the object that serving runs.

The reader of `pipeline.yaml` is imported on demand: a model that only has features does not need
it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from headrace.pipeline.pipeline import Pipeline, PipelineStep

if TYPE_CHECKING:
    from headrace.pipeline.bound_service import BoundFeatures, bind, is_remote, load_with_features
    from headrace.pipeline.build import check_features, load_pipeline
    from headrace.pipeline.feature_step import FeatureStep, plan_assemblies, with_features
    from headrace.pipeline.runtime import HuggingFaceRuntime, PipelineRuntime
    from headrace.pipeline.spec import PipelineSpec, parse_spec

__all__ = [
    "BoundFeatures",
    "FeatureStep",
    "HuggingFaceRuntime",
    "Pipeline",
    "PipelineRuntime",
    "PipelineSpec",
    "PipelineStep",
    "bind",
    "check_features",
    "is_remote",
    "load_pipeline",
    "load_with_features",
    "parse_spec",
    "plan_assemblies",
    "with_features",
]

_LAZY = {
    "bound_service": ("BoundFeatures", "bind", "is_remote", "load_with_features"),
    "build": ("check_features", "load_pipeline"),
    "feature_step": ("FeatureStep", "plan_assemblies", "with_features"),
    "runtime": ("HuggingFaceRuntime", "PipelineRuntime"),
    "spec": ("PipelineSpec", "parse_spec"),
}


def __getattr__(name: str) -> object:
    for module, names in _LAZY.items():
        if name in names:
            return getattr(import_module(f"headrace.pipeline.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
