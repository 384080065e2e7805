"""`preprocess ▸ features ▸ model ▸ postprocess` as one model: the same to train, serve and replay.

A pipeline is a directory with `pipeline.yaml` and the files of its steps, pushed and served as any
model is. `load_pipeline` gives the object that serving runs.
"""

from headrace.pipeline.build import load_pipeline
from headrace.pipeline.pipeline import Pipeline, Step
from headrace.pipeline.runtime import PipelineRuntime
from headrace.pipeline.spec import PipelineSpec, parse_spec

__all__ = [
    "Pipeline",
    "PipelineRuntime",
    "PipelineSpec",
    "Step",
    "load_pipeline",
    "parse_spec",
]
