"""Runtimes of pipelines, so that they are pushed, versioned and served like models."""

from pathlib import Path
from typing import Final

from headrace.runtimes import LoadOptions, Model
from headrace.runtimes.huggingface import HubFolder, is_hub_folder

FILE_NAME: Final = "pipeline.yaml"

# The file's reader is imported only for a pipeline: every model is checked by every runtime.


class PipelineRuntime:
    """Loader of a directory with `pipeline.yaml`."""

    name = "pipeline"
    runs_code = False
    has_manifest = True

    def recognises(self, path: Path) -> bool:
        """Whether `path` is a directory with `pipeline.yaml`."""
        return path.is_dir() and (path / FILE_NAME).is_file()

    def code_in(self, path: Path) -> str:
        """Return the pipeline's steps that run their author's code; empty for none."""
        from headrace.pipeline.build import code_steps  # noqa: PLC0415  # see above

        step = next(iter(code_steps(path)), "")
        return step and f"{step} runs its author's code"

    def load(self, path: Path, options: LoadOptions) -> Model:
        """Open all steps."""
        from headrace.pipeline.build import load_pipeline  # noqa: PLC0415  # see above

        return load_pipeline(path, options)


class HuggingFaceRuntime:
    """Loader of a Hugging Face folder: an ONNX export in it, else its weights by PyTorch."""

    name = "huggingface"
    runs_code = False
    has_manifest = True

    def recognises(self, path: Path) -> bool:
        """Whether `path` is a directory with a `config.json` that names a model's architecture."""
        return is_hub_folder(path)

    def code_in(self, path: Path) -> str:
        """Return the weights' file if it is a pickle and nothing else can be loaded."""
        folder = HubFolder.read(path)
        return f"'{folder.model_file}' is a pickle" if folder.is_pickle else ""

    def load(self, path: Path, options: LoadOptions) -> Model:
        """Open the model between the steps of its task."""
        from headrace.pipeline.huggingface import load_huggingface  # noqa: PLC0415  # see above

        return load_huggingface(path, options)
