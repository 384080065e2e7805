"""Runtime of MLflow folders, as `mlflow.FLAVOR.log_model` and `save_model` write them."""

from pathlib import Path
from typing import Final

from headrace.runtimes.base import LoadOptions, Model
from headrace.runtimes.mlflow.folder import looks_like_mlflow, read_folder
from headrace.runtimes.mlflow.native import NativeModel, find_native
from headrace.runtimes.mlflow.pyfunc import PyfuncModel
from headrace.runtimes.plugins import check_libraries, code_of_model, runs_code

_BY_MLFLOW: Final = "MLflow loads its flavor '{}', which runs code of the model's author"


class MlflowRuntime:
    """Loader of directories with an `MLmodel` file.

    The file of a flavor that one of Headrace's runtimes supports is run by it, without MLflow.
    """

    name = "mlflow"
    runs_code = False
    has_manifest = True

    def recognises(self, path: Path) -> bool:
        """Whether `path` is a directory with an `MLmodel` file."""
        return looks_like_mlflow(path)

    def code_in(self, path: Path) -> str:
        """Return the code in the folder: that of its model file, or all that MLflow loads."""
        folder = read_folder(path)
        native = find_native(folder)
        if native is None:
            return _BY_MLFLOW.format(folder.loader)
        if not runs_code(native.runtime, native.path):
            return ""
        what = f"'{native.path.name}' is a model of the runtime '{native.runtime.name}'"
        return code_of_model(native.runtime, native.path) or f"{what}, which runs code"

    def load(self, path: Path, options: LoadOptions) -> Model:
        """Load the model. Runs the code that `code_in` names."""
        folder = read_folder(path)
        native = find_native(folder)
        if native is None:
            return PyfuncModel.open(folder, options)
        check_libraries(native.runtime, native.path)
        return NativeModel.open(native, folder, options)
