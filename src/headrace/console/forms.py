"""Forms of actions: inputs, the confirmation page, and differences between two specs."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import unified_diff
from typing import Any, Final

from ruamel.yaml import YAML

from headrace.console.view import PageRequest, PageView

_CONTEXT_LINES: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class FormInput:
    """One input of a form."""

    name: str
    label: str
    kind: str = "text"
    """`text`, `number`, `select`, `checkbox`, `file` or `hidden`."""
    value: str = ""
    help: str = ""
    """Explanation below the input."""
    choices: Mapping[str, str] | None = None
    """Labels by value, of a selection; values that a text input suggests."""
    least: int | None = None
    most: int | None = None
    is_required: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffLine:
    """Line of a difference: `kind` is `added`, `removed`, `same` or `place`."""

    kind: str
    text: str


_KINDS: Final = {"+": "added", "-": "removed", "@": "place"}


def spec_diff(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> list[DiffLine]:
    """Return the lines that differ between two entries of a spec, with some lines around them."""
    lines = unified_diff(_yaml(before), _yaml(after), lineterm="", n=_CONTEXT_LINES)
    shown = list(lines)[2:]  # without the names of files
    return [DiffLine(kind=_KINDS.get(line[0], "same"), text=line) for line in shown]


def _yaml(document: Mapping[str, Any] | None) -> list[str]:
    if document is None:
        return []
    text = io.StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.dump(dict(document), text)
    return text.getvalue().splitlines()


def confirmation(
    request: PageRequest,
    *,
    title: str,
    consequence: str,
    label: str,
    crumbs: Sequence[tuple[str, str]],
    section: str,
    inputs: Sequence[FormInput] = (),
    look: str = "primary",
    **more: object,
) -> PageView:
    """Return the page that asks for a confirmation.

    Args:
        consequence: What the action does.
        label: Text of the button.
        crumbs: Path and name of the pages above; the last one is where "Cancel" leads.
        look: `primary` or `danger`.
        more: `shares` and their title `split_title`, `lead` (state and text), `diff`, `warning`,
            `next_step` (path and text of a link), `encoding` of the form.
    """
    return PageView(
        template="confirm.html",
        title=title,
        section=section,
        values={
            "consequence": consequence,
            "label": label,
            "crumbs": crumbs,
            "inputs": inputs,
            "look": look,
            "shares": None,
            "split_title": "Current traffic split",
            "lead": None,
            "diff": None,
            "warning": "",
            "next_step": None,
            "encoding": "",
            "problem": request.problem,
            **more,
        },
    )


def checked_number(text: str) -> int | None:
    """Return the integer of an input; None if it is empty. The API refuses other texts."""
    stripped = text.strip()
    return int(stripped) if stripped.isascii() and stripped.isdigit() else None
