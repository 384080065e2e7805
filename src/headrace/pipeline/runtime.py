"""The runtime that loads pipelines, so that they are pushed, versioned and served as models are."""

from pathlib import Path

from headrace.core import ModelSignature
from headrace.pipeline.build import code_steps, load_pipeline
from headrace.pipeline.spec import FILE_NAME
from headrace.runtimes import LoadOptions, Model


class PipelineRuntime:
    """Loads a directory with `pipeline.yaml`."""

    name = "pipeline"
    runs_code = False
    has_manifest = True

    def recognises(self, path: Path) -> bool:
        """Whether it is a directory with `pipeline.yaml`."""
        return path.is_dir() and (path / FILE_NAME).is_file()

    def runs_code_of(self, path: Path) -> bool:
        """Whether a step of this pipeline runs code of its author's."""
        return any(True for _ in code_steps(path))

    def inspect(self, path: Path) -> ModelSignature:
        """Open all steps, and run them once on made-up inputs where that means something."""
        pipeline = load_pipeline(path)
        try:
            return pipeline.signature
        finally:
            pipeline.close()

    def load(self, path: Path, options: LoadOptions) -> Model:
        """Open all steps."""
        return load_pipeline(path, options)
