"""Run what the optimizer made: a directory whose manifest names the engine and its options."""

from pathlib import Path

from headrace.core import UnsupportedModelError
from headrace.runtimes.base import LoadOptions, Model
from headrace.runtimes.optimized_manifest import FILE_NAME


class OptimizedRuntime:
    """Loads a directory with `optimized.json`."""

    name = "optimized"
    runs_code = False
    has_manifest = True

    def recognises(self, path: Path) -> bool:
        """Whether it is a directory with `optimized.json`."""
        return path.is_dir() and (path / FILE_NAME).is_file()

    def load(self, path: Path, options: LoadOptions) -> Model:
        """Load each member, and verify the model where the processor is another one."""
        raise UnsupportedModelError(f"{path}: not built yet ({options})")
