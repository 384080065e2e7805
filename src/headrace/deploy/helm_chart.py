"""Where is the chart, and how is it written with a user's values?"""

from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.scalarstring import LiteralScalarString

import headrace
from headrace.core import FailedPreconditionError

_PACKAGED: Final = Path(__file__).parent / "chart"
_LONG: Final = 200


def chart_folder() -> Path:
    """The chart of this version: beside this module, or in the checkout that this comes from.

    Raises:
        FailedPreconditionError: It is in neither place.
    """
    checkout = Path(headrace.__file__).parents[2] / "charts" / "headrace"
    for folder in (_PACKAGED, checkout):
        if (folder / "Chart.yaml").is_file():
            return folder
    raise FailedPreconditionError(
        f"the chart is neither in {_PACKAGED} nor in {checkout}: install headrace from its wheel"
    )


def check_folder(folder: Path) -> None:
    """Refuse a folder with files of somebody else's: the chart's README.md would replace theirs.

    Raises:
        FailedPreconditionError: It has files, and no chart of ours among them.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    about = folder / "Chart.yaml"
    try:
        named = YAML(typ="safe").load(about) if about.is_file() else None
    except (UnicodeDecodeError, YAMLError):
        named = None
    if not (isinstance(named, Mapping) and named.get("name") == "headrace"):
        raise FailedPreconditionError(
            f"'{folder}' has files and is no chart of Headrace's, so they could be written over: "
            "name a folder that is empty or is not there yet"
        )


def chart_with(values: Mapping[str, Any], chart: Path) -> Mapping[str, bytes]:
    """Every file of the chart by its path in it, with `values` over its own."""
    files = {
        path.relative_to(chart).as_posix(): path.read_bytes()
        for path in sorted(chart.rglob("*"))
        if path.is_file()
    }
    return {**files, "values.yaml": _filled(files["values.yaml"].decode(), values).encode()}


def _filled(text: str, values: Mapping[str, Any]) -> str:
    """The chart's own values, with their comments, and the given ones in their places."""
    yaml = YAML()
    yaml.width = 100
    document = yaml.load(text)
    _merge(document, values)
    out = StringIO()
    yaml.dump(document, out)
    return out.getvalue()


def _merge(document: Any, values: Mapping[str, Any]) -> None:  # noqa: ANN401  # YAML with comments
    for key, value in values.items():
        # A spec is replaced as a whole: nothing of the chart's is left in it.
        if isinstance(value, Mapping) and isinstance(document.get(key), Mapping) and key != "spec":
            _merge(document[key], value)
        else:
            document[key] = _readable(value)


def _readable(value: Any) -> Any:  # noqa: ANN401  # any part of a document
    """Long texts line by line, as people read them."""
    if isinstance(value, Mapping):
        return {key: _readable(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_readable(one) for one in value]
    if isinstance(value, str) and "\n" in value and len(value) > _LONG:
        return LiteralScalarString(value)
    return value
