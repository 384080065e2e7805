"""What is a step opened with? Its directory, how to load, and what earlier steps give."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from headrace.core import HeadraceError, TensorSpec, UnsupportedModelError
from headrace.pipeline.lengths import ByLength
from headrace.runtimes import LoadOptions, Model, detect_runtime, get_runtime, runs_code


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a step is opened with: where its files lie, how to load, what is known before it.

    `known`: the tensors that earlier steps give, by the pipeline's names.
    """

    directory: Path
    options: LoadOptions
    known: Mapping[str, TensorSpec]

    def file(self, name: str) -> Path:
        """What a step names, which has to lie in the pipeline's directory.

        Raises:
            UnsupportedModelError: It lies elsewhere, or there is none.
        """
        return file_in(self.directory, name)

    def tensor(self, own: str, inputs: Mapping[str, str]) -> TensorSpec:
        """The tensor that a step reads under a name of its own, where its kind depends on it.

        Raises:
            UnsupportedModelError: No earlier step gives it.
        """
        name = inputs.get(own, own)
        there = self.known.get(name)
        if there is None:
            msg = f"no earlier step gives '{name}'; there are: {', '.join(self.known) or 'none'}"
            raise UnsupportedModelError(f"{msg}; map it, as in inputs: {{{own}: NAME}}")
        return there

    def model(self, name: str, runtime: str = "") -> Model:
        """A model beside `pipeline.yaml`, which rows of different lengths may ask together.

        Raises:
            UnsupportedModelError: It cannot be loaded.
        """
        path = _model_in(self.directory, name)
        plugin = get_runtime(runtime) if runtime else detect_runtime(path)
        model = plugin.load(path, self.options)
        try:
            return ByLength.around(model)
        except HeadraceError:
            model.close()
            raise


def file_in(directory: Path, name: str) -> Path:
    """What a step names, which has to lie in the pipeline's directory.

    Raises:
        UnsupportedModelError: It lies elsewhere, or there is none.
    """
    path = directory / name
    if not path.resolve().is_relative_to(directory.resolve()) or Path(name).is_absolute():
        msg = f"'{name}' does not lie in the pipeline's directory, which is all that is pushed"
        raise UnsupportedModelError(msg)
    if not path.exists():
        raise UnsupportedModelError(f"there is no '{name}' beside pipeline.yaml")
    return path


def code_of(directory: Path, name: str, runtime: str = "") -> str:
    """The name of the runtime by which a model of a step runs code; empty if it runs none."""
    path = _model_in(directory, name)
    plugin = get_runtime(runtime) if runtime else detect_runtime(path)
    return plugin.name if runs_code(plugin, path) else ""


def _model_in(directory: Path, name: str) -> Path:
    path = file_in(directory, name)
    if path.resolve() == directory.resolve():
        raise UnsupportedModelError("a pipeline cannot be a step of itself")
    return path
