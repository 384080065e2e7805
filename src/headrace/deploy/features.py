"""Support of spec features by target, and the losses and notes of a spec."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from pydantic import BaseModel

from headrace.core import InvalidArgumentError, UnsupportedError
from headrace.core.spec.base import model_of, value_of
from headrace.core.spec.parse import SystemSpec
from headrace.core.spec.part import SpecPart


@dataclass(frozen=True, slots=True)
class ExportNote:
    """A note on an export; `location` in the spec, empty if it concerns all of it."""

    text: str
    location: str = ""


def unique_texts(notes: Iterable[ExportNote]) -> tuple[str, ...]:
    """Return `LOCATION, LOCATION: text`, in the order of each text's first occurrence."""
    locations: dict[str, list[str]] = {}
    for note in notes:
        note_locations = locations.setdefault(note.text, [])
        if note.location and note.location not in note_locations:
            note_locations.append(note.location)
    return tuple(
        f"{', '.join(text_locations)}: {text}" if text_locations else text
        for text, text_locations in locations.items()
    )


@dataclass(frozen=True, slots=True)
class SpecSetting:
    """One setting: location `endpoints[0].timeout_s`, field `endpoints[].timeout_s`, and value.

    Entries of a mapping are located by name: `kubernetes.endpoints[fraud].image`.
    """

    location: str
    field: str
    value: Any


def explicit_settings(
    model: BaseModel | SpecPart, location: str = "", field: str = ""
) -> Iterator[SpecSetting]:
    """Yield the settings of `model` that differ from their default, in the file's order.

    A part precedes its fields; a default that was written explicitly is skipped.
    """
    for name, info in model_of(type(model)).model_fields.items():
        value = value_of(model, name)
        if name not in model.model_fields_set:
            continue
        if not info.is_required() and value == info.get_default(call_default_factory=True):
            continue
        yield from _settings_of(value, _joined(location, name), _joined(field, name))


def is_within(field: str, outer: str) -> bool:
    """Whether `field` is `outer` or a part of it."""
    return field == outer or field.startswith((f"{outer}.", f"{outer}["))


def _settings_of(value: object, location: str, field: str) -> Iterator[SpecSetting]:
    if isinstance(value, BaseModel | SpecPart):
        yield SpecSetting(location, field, value)
        yield from explicit_settings(value, location, field)
    elif isinstance(value, tuple) and any(isinstance(item, BaseModel | SpecPart) for item in value):
        yield SpecSetting(location, field, value)
        for i, item in enumerate(value):
            yield from explicit_settings(item, f"{location}[{i}]", f"{field}[]")
    elif isinstance(value, Mapping) and any(
        isinstance(i, BaseModel | SpecPart) for i in value.values()
    ):
        yield SpecSetting(location, field, value)
        for name, item in value.items():
            yield from explicit_settings(item, f"{location}[{name}]", f"{field}[]")
    else:
        yield SpecSetting(location, field, value)


def _joined(outer: str, name: str) -> str:
    return f"{outer}.{name}" if outer else name


_INDEX: Final = re.compile(r"\[[^\]]*\]")


@dataclass(frozen=True, slots=True)
class Loss:
    """One setting that a target cannot express."""

    location: str
    why: str
    remedy: str

    @property
    def field(self) -> str:
        """Return the setting without indexes, as `--allow-loss` takes it."""
        return _INDEX.sub("[]", self.location)

    def left_out(self, target: str) -> ExportNote:
        """Return the note for an allowed loss."""
        return ExportNote(f"left out, {target} {self.why}", self.location)

    def __str__(self) -> str:
        return f"{self.location}: {self.why}; {self.remedy}"


class NotExpressibleError(UnsupportedError):
    """The target cannot express the spec; `losses` lists all reasons."""

    def __init__(self, target: str, losses: Sequence[Loss]) -> None:
        self.target = target
        self.losses = tuple(losses)
        count = len(self.losses)
        head = f"{target} cannot express {count} setting{'' if count == 1 else 's'} of the spec:"
        fields = dict.fromkeys(loss.field for loss in self.losses)
        tail = "to leave them out: " + " ".join(f"--allow-loss {f}" for f in fields)
        super().__init__("\n  ".join([head, *map(str, self.losses), tail]))


def accepted(target: str, losses: Iterable[Loss], allowed: Iterable[str]) -> tuple[Loss, ...]:
    """Return the losses if all of them are allowed.

    Args:
        allowed: Fields such as `endpoints[].sticky`, including their parts.

    Raises:
        NotExpressibleError: Some losses are not allowed.
        InvalidArgumentError: An allowed field is not lost: a typing mistake, or outdated.
    """
    unique = tuple(dict.fromkeys(losses))
    fields = tuple(_INDEX.sub("[]", field) for field in allowed)
    refused = [loss for loss in unique if not any(is_within(loss.field, f) for f in fields)]
    if refused:
        raise NotExpressibleError(target, refused)
    idle = [f for f in fields if not any(is_within(loss.field, f) for loss in unique)]
    if idle:
        lost_fields = ", ".join(dict.fromkeys(loss.field for loss in unique)) or "nothing"
        msg = f"--allow-loss {idle[0]}: that is not lost here; {target} would lose {lost_fields}"
        raise InvalidArgumentError(msg)
    return unique


class ExportTarget(StrEnum):
    """A system to which a spec is exported; also the name of the command."""

    GATEWAY_API = "gateway-api"
    KSERVE = "kserve"
    ARGO_ROLLOUTS = "argo-rollouts"
    KONG = "kong"
    AWS_APIGATEWAY = "aws-apigateway"
    ENVOY = "envoy"


class ExportOutcome(StrEnum):
    """Support of a feature by a target."""

    EXPRESSED = "yes"
    APPROXIMATED = "about"
    REFUSED = "no"
    KEPT = "not its business"
    """Another component handles it as before, so it is not part of the export."""


Holds = Callable[[Any], bool]
Overrules = Callable[[SystemSpec], bool]


def _always(_: object) -> bool:
    return True


def _never(_: SystemSpec) -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSupport:
    """Support of one feature by one target."""

    outcome: ExportOutcome

    note: str = ""
    """How it is expressed, which component handles it, or why it is refused."""

    remedy: str = ""
    """Remedy for a refusal."""

    when: Holds = field(default=_always, compare=False)
    """For which values `outcome` applies; other values are expressed."""

    unless: Overrules = field(default=_never, compare=False)
    """For which specs it is expressed with any value."""

    rest: str = ""
    """Documentation of the values that are refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecFeature:
    """A row of the table: fields with the same support. Longer fields take precedence."""

    title: str
    fields: tuple[str, ...]
    cells: Mapping[ExportTarget, FeatureSupport]


def yes(note: str = "") -> FeatureSupport:
    """Return the support of a feature that is expressed exactly."""
    return FeatureSupport(outcome=ExportOutcome.EXPRESSED, note=note)


def about(note: str) -> FeatureSupport:
    """Return the support of a feature that is approximated, as described in `note`."""
    return FeatureSupport(outcome=ExportOutcome.APPROXIMATED, note=note)


def external(note: str) -> FeatureSupport:
    """Return the support of a feature that another component, named in `note`, handles."""
    return FeatureSupport(outcome=ExportOutcome.KEPT, note=note)


def no(
    reason: str, remedy: str, *, when: Holds = _always, unless: Overrules = _never, rest: str = ""
) -> FeatureSupport:
    """Return the support of a feature that is refused if `when` and not `unless` (see `rest`)."""
    return FeatureSupport(
        outcome=ExportOutcome.REFUSED,
        note=reason,
        remedy=remedy,
        when=when,
        unless=unless,
        rest=rest,
    )


def row(
    title: str, fields: str, *cells: FeatureSupport, every: FeatureSupport | None = None
) -> SpecFeature:
    """Return a row.

    Args:
        fields: Separated by spaces; those that follow `PARENT:` are fields of this part.
        cells: In the order of the targets; none if `every` is for all of them.
    """
    supports = cells or (every,) * len(ExportTarget)
    names, parent = list[str](), ""
    for name in fields.split():
        if name.endswith(":"):
            parent = f"{name[:-1]}."
        else:
            names.append(f"{parent}{name}")
    return SpecFeature(
        title=title,
        fields=tuple(names),
        cells={target: cell for target, cell in zip(ExportTarget, supports, strict=True) if cell},
    )


def feature_of(table: tuple[SpecFeature, ...], name: str) -> tuple[SpecFeature, str] | None:
    """Return the row of a spec field, and the row's matching field; None if there is none."""
    matches = [(feature, f) for feature in table for f in feature.fields if is_within(name, f)]
    return max(matches, key=lambda item: len(item[1]), default=None)


@dataclass(frozen=True, slots=True)
class SettingOutcome:
    """The outcome of one explicit setting."""

    setting: SpecSetting
    cell: FeatureSupport
    is_lost: bool
    """Whether the target refuses this value in this spec."""

    def loss(self) -> Loss:
        """Return the loss of the setting."""
        return Loss(self.setting.location, self.cell.note, self.cell.remedy)


def setting_outcomes(
    table: tuple[SpecFeature, ...], target: ExportTarget, spec: SystemSpec
) -> Iterator[SettingOutcome]:
    """Yield the outcome of each setting in `spec`.

    A part that is refused as a whole is reported once, without its fields.
    """
    reported: list[str] = []
    for setting in explicit_settings(spec):
        match = feature_of(table, setting.field)
        # An outer part, such as `endpoints[]`, has no row: its fields have.
        if match is None or any(is_within(setting.location, location) for location in reported):
            continue
        feature, named = match
        # A field within a part that was judged as a whole adds nothing.
        if setting.field != named and feature.cells[target].outcome is ExportOutcome.REFUSED:
            continue
        cell = feature.cells[target]
        is_refused = cell.outcome is ExportOutcome.REFUSED and not cell.unless(spec)
        setting_outcome = SettingOutcome(setting, cell, is_refused and cell.when(setting.value))
        if setting_outcome.is_lost:
            reported.append(setting.location)
        yield setting_outcome
