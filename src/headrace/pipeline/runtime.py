"""The runtime that loads pipelines, so that they are pushed, versioned and served as models are."""

from pathlib import Path
from typing import Final

from headrace.core import ModelSignature
from headrace.runtimes import LoadOptions, Model

FILE_NAME: Final = "pipeline.yaml"

# What reads that file is loaded only for a pipeline: every model is shown to every runtime.


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
        from headrace.pipeline.build import code_steps  # noqa: PLC0415  # see above

        return next(iter(code_steps(path)), None) is not None

    def inspect(self, path: Path) -> ModelSignature:
        """Open all steps, which proves that they load and fit together."""
        pipeline = self.load(path, LoadOptions())
        try:
            return pipeline.signature
        finally:
            pipeline.close()

    def load(self, path: Path, options: LoadOptions) -> Model:
        """Open all steps."""
        from headrace.pipeline.build import load_pipeline  # noqa: PLC0415  # see above

        return load_pipeline(path, options)
