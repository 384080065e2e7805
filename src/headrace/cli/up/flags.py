"""Flags of `headrace up` that a home stores for its next start.

A flag of the command line takes precedence over its environment variable, which takes precedence
over the stored flag. Stored are the flags of the command line only, with absolute paths.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, get_args, get_type_hints

import msgspec
from typer.models import OptionInfo

from headrace.cli.up.settings import ControlOptions, GatewayTlsOptions
from headrace.control.base.home import Home
from headrace.control.base.ownership import HomeIdentity, ProcessOwner
from headrace.control.base.settings import absolute_reference
from headrace.core import FailedPreconditionError
from headrace.core.state_file import StateFile

if TYPE_CHECKING:
    import typer

    from headrace.control import ControlFile

_NOT_STORED: Final = frozenset({"home", "help_all"})
_SECRET: Final = frozenset({"state_url", "oidc_client_secret", "prometheus_url", "artifacts"})
"""Options whose values may contain secrets, so that they are not displayed."""

T = TypeVar("T")


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    values: dict[str, Any]
    home: HomeIdentity | None
    """The home that was started; a copy of it does not take its flags, such as its ports."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFlags:
    """Values of options by parameter name, as JSON."""

    values: Mapping[str, Any]

    @classmethod
    def load(cls, home: Path) -> "StoredFlags":
        """Return the flags that the home at `home` stores; none in a copy of a home."""
        record, identity = _file(home).load(), ProcessOwner.of(home).identity
        if record is None:
            return cls(values={})
        is_own = record.home is None or (identity is not None and identity.continues(record.home))
        return cls(values=record.values if is_own else {})

    def save(self, home: Path) -> None:
        """Store the flags; the home exists."""
        identity = ProcessOwner.of(home).identity
        _file(home).try_save(_Record(values=dict(self.values), home=identity))

    def applied_to(self, options: T, context: "typer.Context") -> T:
        """Return an option struct with the stored flags that this command does not set."""
        hints = get_type_hints(type(options))
        stored = {
            field.name: msgspec.convert(
                self.values[field.name], hints[field.name], dec_hook=_decoded, strict=False
            )
            for field in fields(options)  # type: ignore[arg-type]  # option structs are dataclasses
            if field.name in self.values and _source(context, field.name) == "DEFAULT"
        }
        return replace(options, **stored)  # type: ignore[type-var]  # as above

    def updated(self, context: "typer.Context", *structs: object) -> "StoredFlags":
        """Return the flags after a command with the option structs `structs`."""
        given = {
            field.name: _encoded(getattr(struct, field.name))
            for struct in structs
            for field in fields(struct)  # type: ignore[arg-type]  # as above
            if field.name not in _NOT_STORED and _source(context, field.name) == "COMMANDLINE"
        }
        return StoredFlags(values={**self.values, **given})

    def check_running(
        self, control: "ControlFile", context: "typer.Context", *structs: object
    ) -> None:
        """Refuse flags that the running control plane was not started with.

        Raises:
            FailedPreconditionError: It would ignore a flag; the message says how to apply it.
        """
        after = self.updated(context, *structs).values
        ignored = [
            name
            for name, value in after.items()
            if name not in self.values or self.values[name] != value
        ]
        if not ignored:
            return
        flags = ", ".join(_flag(name) for name in ignored)
        msg = (
            f"{flags}: the control plane that runs (pid {control.pid}) was started otherwise, and "
            f"flags apply only at its start; `kill {control.pid}` ends it and leaves gateway and "
            "replicas running, then repeat this command"
        )
        raise FailedPreconditionError(msg)

    def text(self) -> str:
        """Return the flags as on a command line, without values that may be secret."""
        parts = []
        for name, value in self.values.items():
            for item in value if isinstance(value, list) else [value]:
                shown = "" if item is True else " ***" if name in _SECRET else f" {item}"
                parts.append(f"{_flag(name)}{shown}")
        return " ".join(parts)


def _flag(name: str) -> str:
    """Return the option on the command line of a parameter."""
    for struct in (ControlOptions, GatewayTlsOptions):
        hints = get_type_hints(struct, include_extras=True)
        for info in get_args(hints.get(name))[1:]:
            # In an annotation, typer's first name of an option is its `default`.
            if isinstance(info, OptionInfo) and str(info.default).startswith("--"):
                return str(info.default)
    return f"--{name.replace('_', '-')}"


def _file(home: Path) -> StateFile[_Record]:
    return StateFile(Home(root=home.absolute()).flags_file, _Record, "the flags of the last start")


def _source(context: "typer.Context", name: str) -> str:
    source = context.get_parameter_source(name)
    return "DEFAULT" if source is None else source.name


def _encoded(value: Any) -> Any:  # noqa: ANN401  # values of options
    match value:
        case Path():
            return str(value.absolute())
        case Enum():
            return value.value
        case str():
            return absolute_reference(value)
        case list():
            return [_encoded(item) for item in value]
        case _:
            return value


def _decoded(kind: type, value: object) -> object:
    if issubclass(kind, Path):
        return Path(str(value))
    raise NotImplementedError(kind)
