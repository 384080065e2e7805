"""How is an export written? As YAML or JSON, always in the same order, and saying what it is."""

import json
from collections.abc import Mapping
from enum import StrEnum
from io import StringIO
from typing import Any, Final

from ruamel.yaml import YAML

from headrace import __version__
from headrace.core import InvalidArgumentError
from headrace.deploy.export import Export

_WIDTH: Final = 100


class Format(StrEnum):
    """How documents are written."""

    YAML = "yaml"
    JSON = "json"


def text_of(export: Export, form: Format) -> str:
    """All documents in one text.

    Raises:
        InvalidArgumentError: There are several, of which JSON has room for one.
    """
    documents = export.documents
    if form is Format.JSON:
        if len(documents) == 1:
            return _json(documents[0].body)
        if all("kind" in document.body for document in documents):
            items = [document.body for document in documents]
            return _json({"apiVersion": "v1", "kind": "List", "items": items})
        msg = f"these are {len(documents)} documents, of which JSON takes one: --output FOLDER"
        raise InvalidArgumentError(msg)
    return "---\n".join([_head(export), *(_yaml(d.body) for d in documents)])


def files_of(export: Export, form: Format) -> dict[str, str]:
    """Each document as a file of its own, by its name."""
    ending = form.value
    if form is Format.JSON:
        return {f"{d.name}.{ending}": _json(d.body) for d in export.documents}
    head = _head(export)
    return {f"{d.name}.{ending}": head + _yaml(d.body) for d in export.documents}


def _head(export: Export) -> str:
    lines = [
        f"Written by `headrace export {export.target.value}` of Headrace {__version__}.",
        "Write it again rather than change it.",
        *(line for note in export.notes for line in note.splitlines()),
    ]
    return "".join(f"# {line}\n" for line in lines)


def _json(body: Mapping[str, Any]) -> str:
    return json.dumps(body, indent=2, ensure_ascii=False) + "\n"


def _yaml(body: Mapping[str, Any]) -> str:
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # an order of ours
    writer.width = _WIDTH
    writer.representer.ignore_aliases = lambda _: True  # the same part twice is no reference
    text = StringIO()
    writer.dump(_plain(body), text)
    return text.getvalue()


def _plain(value: object) -> object:
    """`value` with lists for tuples, as YAML has them."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
