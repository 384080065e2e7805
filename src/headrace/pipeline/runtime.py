"""The runtime that loads pipelines, so that they are pushed, versioned and served as models are."""

from pathlib import Path
from typing import Final

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

    def code_in(self, path: Path) -> str:
        """Which step of this pipeline runs code of its author's; empty if none does."""
        from headrace.pipeline.build import code_steps  # noqa: PLC0415  # see above

        step = next(iter(code_steps(path)), "")
        return step and f"{step} runs its author's code"

    def load(self, path: Path, options: LoadOptions) -> Model:
        """Open all steps."""
        from headrace.pipeline.build import load_pipeline  # noqa: PLC0415  # see above

        return load_pipeline(path, options)
