"""One shape of all commands that export a spec: facts are read, documents made of them, written."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import functools
import inspect
from collections.abc import Callable, Mapping
from inspect import Parameter, Signature
from typing import TYPE_CHECKING, Any, Final

from headrace.cli.export_options import (
    AllowLoss,
    Endpoints,
    File,
    FormatOption,
    FromSystem,
    Output,
)
from headrace.cli.options import DEFAULT_HOME, Home, Server

if TYPE_CHECKING:
    from headrace.deploy import Export

_FIRST: Final[Mapping[str, tuple[Any, Any]]] = {
    "file": (File, None),
    "from_system": (FromSystem, False),
    "output": (Output, "-"),
    "form": (FormatOption, ""),
    "allow_loss": (AllowLoss, None),
    "endpoint": (Endpoints, None),
}
_LAST: Final[Mapping[str, tuple[Any, Any]]] = {
    "server": (Server, None),
    "home": (Home, DEFAULT_HOME),
}
"""Options that all have, by their parameters' names: what they are, and their defaults."""


def exports(
    make: "Callable[..., Export]", *, output: str = "-", with_revisions: bool = False
) -> Callable[..., None]:
    """The command of `make`, which turns facts and options of its own into documents.

    Args:
        output: Where documents go if nobody says.
        with_revisions: Whether `make` has to know what a control plane would run.
    """

    @functools.wraps(make)
    def command(**given: Any) -> None:  # noqa: ANN401  # options of several types
        from headrace.cli.export_facts import facts_for
        from headrace.cli.export_options import write_export

        shared = {name: given.pop(name) for name in (*_FIRST, *_LAST)}
        facts = facts_for(
            shared["file"],
            from_system=shared["from_system"],
            server=shared["server"],
            home=shared["home"],
            allow_loss=shared["allow_loss"],
            only=shared["endpoint"],
            with_revisions=with_revisions,
        )
        write_export(make(facts, **given), shared["output"], shared["form"])

    parameters = _parameters(make, output)
    # What typer reads: else it would see the options of `make` alone.
    signature = Signature(parameters, return_annotation=None)
    command.__signature__ = signature  # type: ignore[attr-defined]  # inspect looks for it
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    return command


def _parameters(make: "Callable[..., Export]", output: str) -> list[Parameter]:
    """Those of `make` without the facts, between those that all commands have."""
    _, *own = inspect.signature(make).parameters.values()
    needed = [one for one in own if one.default is Parameter.empty]
    others = [one for one in own if one.default is not Parameter.empty]
    first = {**_FIRST, "output": (Output, output)}
    given = [*needed, *_as_parameters(first), *others, *_as_parameters(_LAST)]
    return [one.replace(kind=Parameter.KEYWORD_ONLY) for one in given]


def _as_parameters(options: Mapping[str, tuple[Any, Any]]) -> list[Parameter]:
    return [
        Parameter(name, Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
        for name, (annotation, default) in options.items()
    ]
