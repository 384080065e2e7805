"""Rules for file-system paths that the control plane reads models from."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from headrace.core import InvalidArgumentError
from headrace.core.spec import is_model_path


def check_model_path(path: Path, home: Path) -> None:
    """Refuse a path to which files of the home belong, whoever names it.

    Raises:
        InvalidArgumentError: It lies in the home, or the home in it.
    """
    real, real_home = path.resolve(), home.resolve()
    if real.is_relative_to(real_home) or real_home.is_relative_to(real):
        message = (
            f"{path} is in the home {home}, or around it: what lies there is no model to serve; "
            "name a version of the registry, or another path"
        )
        raise InvalidArgumentError(message)


def paths_below(roots: Iterable[Path], document: Mapping[str, Any]) -> frozenset[str]:
    """The model paths of a spec's endpoints that lie below one of `roots`, links followed."""
    real_roots = [root.resolve() for root in roots]
    sources = [
        source
        for endpoint in document.get("endpoints") or ()
        for source in (endpoint, *(endpoint.get("versions") or ()))
    ]
    paths = {source["model"] for source in sources if is_model_path(source.get("model") or "")}
    return frozenset(
        path
        for path in (paths if real_roots else ())
        if any(Path(path).resolve().is_relative_to(root) for root in real_roots)
    )
