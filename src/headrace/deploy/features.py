"""Features that each target expresses, and the losses and notes that follow for a spec."""

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
    """Something to say; `place` in the spec, empty where it is about all of it."""

    text: str
    location: str = ""


def unique_texts(notes: Iterable[ExportNote]) -> tuple[str, ...]:
    """`PLACE, PLACE: text`, in the order in which each text came first."""
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
    """One setting: `endpoints[0].timeout_s`, its field `endpoints[].timeout_s`, what it is.

    What a mapping has under a name stands at that name: `kubernetes.endpoints[fraud].image`.
    """

    location: str
    field: str
    value: Any


def explicit_settings(
    model: BaseModel | SpecPart, location: str = "", field: str = ""
) -> Iterator[SpecSetting]:
    """The settings of `model` that are set and differ from their default, in the file's order.

    A part is told before what is in it; a default that was written out says nothing.
    """
    for name, info in model_of(type(model)).model_fields.items():
        value = value_of(model, name)
        if name not in model.model_fields_set:
            continue
        if not info.is_required() and value == info.get_default(call_default_factory=True):
            continue
        yield from _settings_of(value, _joined(location, name), _joined(field, name))


def is_within(field: str, outer: str) -> bool:
    """Whether `field` is `outer`, or a part of it."""
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
        """The setting, wherever it stands: what `--allow-loss` takes."""
        return _INDEX.sub("[]", self.location)

    def left_out(self, target: str) -> ExportNote:
        """What has to be said where it may be lost, and is."""
        return ExportNote(f"left out, {target} {self.why}", self.location)

    def __str__(self) -> str:
        return f"{self.location}: {self.why}; {self.remedy}"


class NotExpressibleError(UnsupportedError):
    """The spec says what the target cannot express; `losses` names all of it."""

    def __init__(self, target: str, losses: Sequence[Loss]) -> None:
        self.target = target
        self.losses = tuple(losses)
        count = len(self.losses)
        head = f"{target} cannot express {count} setting{'' if count == 1 else 's'} of the spec:"
        fields = dict.fromkeys(loss.field for loss in self.losses)
        tail = "to leave them out all the same: " + " ".join(f"--allow-loss {f}" for f in fields)
        super().__init__("\n  ".join([head, *map(str, self.losses), tail]))


def accepted(target: str, losses: Iterable[Loss], allowed: Iterable[str]) -> tuple[Loss, ...]:
    """The losses, all of which somebody said they may be.

    Args:
        allowed: Fields such as `endpoints[].sticky`; what stands within one is allowed too.

    Raises:
        NotExpressibleError: Some may not be.
        InvalidArgumentError: An allowed one would not be lost: it is a typing mistake, or outdated.
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
    """A system that a spec is exported for; the command is named like it."""

    GATEWAY_API = "gateway-api"
    KSERVE = "kserve"
    ARGO_ROLLOUTS = "argo-rollouts"
    KONG = "kong"
    AWS_APIGATEWAY = "aws-apigateway"
    ENVOY = "envoy"


class ExportOutcome(StrEnum):
    """What becomes of a feature in a target."""

    EXPRESSED = "yes"
    APPROXIMATED = "about"
    REFUSED = "no"
    KEPT = "not its business"
    """Somebody else does it as before, so the export has nothing to say of it."""


Holds = Callable[[Any], bool]
Overrules = Callable[[SystemSpec], bool]


def _always(_: object) -> bool:
    return True


def _never(_: SystemSpec) -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSupport:
    """One feature in one target.

    `note`: how it is expressed, or who keeps it, or why not. `way_out`: of a refusal. `when`: for
    which values it is as `outcome` says; for all others it is expressed. `unless`: for which specs
    it is expressed whatever the value.
    """

    outcome: ExportOutcome
    note: str = ""
    remedy: str = ""
    when: Holds = field(default=_always, compare=False)
    unless: Overrules = field(default=_never, compare=False)
    rest: str = ""
    """Says in the documentation for which values a refusal holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecFeature:
    """A row of the table: some fields of the spec that share a fate. Longer fields go first."""

    title: str
    fields: tuple[str, ...]
    cells: Mapping[ExportTarget, FeatureSupport]


def yes(note: str = "") -> FeatureSupport:
    """It is expressed, exactly."""
    return FeatureSupport(outcome=ExportOutcome.EXPRESSED, note=note)


def about(note: str) -> FeatureSupport:
    """Something close to it is expressed, which `note` tells."""
    return FeatureSupport(outcome=ExportOutcome.APPROXIMATED, note=note)


def external(note: str) -> FeatureSupport:
    """It is not the target's business; `note` says whose it is."""
    return FeatureSupport(outcome=ExportOutcome.KEPT, note=note)


def no(
    why: str, remedy: str, *, when: Holds = _always, unless: Overrules = _never, rest: str = ""
) -> FeatureSupport:
    """It cannot be expressed, `when` the value or the spec is so (`rest` says how); else it is."""
    return FeatureSupport(
        outcome=ExportOutcome.REFUSED,
        note=why,
        remedy=remedy,
        when=when,
        unless=unless,
        rest=rest,
    )


def row(
    title: str, fields: str, *cells: FeatureSupport, every: FeatureSupport | None = None
) -> SpecFeature:
    """A feature; `fields` are separated by spaces, `cells` stand in the order of the targets."""
    supports = cells or (every,) * len(ExportTarget)
    return SpecFeature(
        title=title,
        fields=tuple(fields.split()),
        cells={target: cell for target, cell in zip(ExportTarget, supports, strict=True) if cell},
    )


def feature_of(table: tuple[SpecFeature, ...], name: str) -> tuple[SpecFeature, str] | None:
    """The row that a field of the spec belongs to, and by which of its fields; None for none."""
    matches = [(feature, f) for feature in table for f in feature.fields if is_within(name, f)]
    return max(matches, key=lambda item: len(item[1]), default=None)


@dataclass(frozen=True, slots=True)
class SettingOutcome:
    """What becomes of one setting that somebody wrote."""

    setting: SpecSetting
    cell: FeatureSupport
    is_lost: bool
    """Whether the target refuses it, with this value and in this spec."""

    def loss(self) -> Loss:
        """The refusal."""
        return Loss(self.setting.location, self.cell.note, self.cell.remedy)


def setting_outcomes(
    table: tuple[SpecFeature, ...], target: ExportTarget, spec: SystemSpec
) -> Iterator[SettingOutcome]:
    """What becomes of each setting in `spec`.

    A part that is refused as a whole is told once, and what is in it is not told again.
    """
    reported: list[str] = []
    for setting in explicit_settings(spec):
        match = feature_of(table, setting.field)
        # An outer part, such as `endpoints[]`, has no row: all that is in it has.
        if match is None or any(is_within(setting.location, location) for location in reported):
            continue
        feature, named = match
        # Whether the part was judged as a whole already: a field within it adds
        # nothing.
        if setting.field != named and feature.cells[target].outcome is ExportOutcome.REFUSED:
            continue
        cell = feature.cells[target]
        is_refused = cell.outcome is ExportOutcome.REFUSED and not cell.unless(spec)
        setting_outcome = SettingOutcome(setting, cell, is_refused and cell.when(setting.value))
        if setting_outcome.is_lost:
            reported.append(setting.location)
        yield setting_outcome
