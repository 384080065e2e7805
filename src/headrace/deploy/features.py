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
    place: str = ""


def told_once(notes: Iterable[ExportNote]) -> tuple[str, ...]:
    """`PLACE, PLACE: text`, in the order in which each text came first."""
    places: dict[str, list[str]] = {}
    for note in notes:
        known = places.setdefault(note.text, [])
        if note.place and note.place not in known:
            known.append(note.place)
    return tuple(f"{', '.join(of)}: {text}" if of else text for text, of in places.items())


@dataclass(frozen=True, slots=True)
class SpecSetting:
    """One setting: `endpoints[0].timeout_s`, its field `endpoints[].timeout_s`, what it is.

    What a mapping has under a name stands at that name: `kubernetes.endpoints[fraud].image`.
    """

    place: str
    field: str
    value: Any


def written(model: BaseModel | SpecPart, place: str = "", field: str = "") -> Iterator[SpecSetting]:
    """The settings of `model` that are set and differ from their default, in the file's order.

    A part is told before what is in it; a default that was written out says nothing.
    """
    for name, info in model_of(type(model)).model_fields.items():
        value = value_of(model, name)
        if name not in model.model_fields_set:
            continue
        if not info.is_required() and value == info.get_default(call_default_factory=True):
            continue
        yield from _told(value, _joined(place, name), _joined(field, name))


def is_within(field: str, outer: str) -> bool:
    """Whether `field` is `outer`, or a part of it."""
    return field == outer or field.startswith((f"{outer}.", f"{outer}["))


def _told(value: object, place: str, field: str) -> Iterator[SpecSetting]:
    if isinstance(value, BaseModel | SpecPart):
        yield SpecSetting(place, field, value)
        yield from written(value, place, field)
    elif isinstance(value, tuple) and any(isinstance(item, BaseModel | SpecPart) for item in value):
        yield SpecSetting(place, field, value)
        for i, item in enumerate(value):
            yield from written(item, f"{place}[{i}]", f"{field}[]")
    elif isinstance(value, Mapping) and any(
        isinstance(i, BaseModel | SpecPart) for i in value.values()
    ):
        yield SpecSetting(place, field, value)
        for name, item in value.items():
            yield from written(item, f"{place}[{name}]", f"{field}[]")
    else:
        yield SpecSetting(place, field, value)


def _joined(outer: str, name: str) -> str:
    return f"{outer}.{name}" if outer else name


_INDEX: Final = re.compile(r"\[[^\]]*\]")


@dataclass(frozen=True, slots=True)
class Loss:
    """One setting that a target cannot express."""

    place: str
    why: str
    way_out: str

    @property
    def field(self) -> str:
        """The setting, wherever it stands: what `--allow-loss` takes."""
        return _INDEX.sub("[]", self.place)

    def left_out(self, target: str) -> ExportNote:
        """What has to be said where it may be lost, and is."""
        return ExportNote(f"left out, {target} {self.why}", self.place)

    def __str__(self) -> str:
        return f"{self.place}: {self.why}; {self.way_out}"


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
    found = tuple(dict.fromkeys(losses))
    fields = tuple(_INDEX.sub("[]", field) for field in allowed)
    refused = [loss for loss in found if not any(is_within(loss.field, f) for f in fields)]
    if refused:
        raise NotExpressibleError(target, refused)
    idle = [f for f in fields if not any(is_within(loss.field, f) for loss in found)]
    if idle:
        lost = ", ".join(dict.fromkeys(loss.field for loss in found)) or "nothing"
        msg = f"--allow-loss {idle[0]}: that is not lost here; {target} would lose {lost}"
        raise InvalidArgumentError(msg)
    return found


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
    way_out: str = ""
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


def kept(note: str) -> FeatureSupport:
    """It is not the target's business; `note` says whose it is."""
    return FeatureSupport(outcome=ExportOutcome.KEPT, note=note)


def no(
    why: str, way_out: str, *, when: Holds = _always, unless: Overrules = _never, rest: str = ""
) -> FeatureSupport:
    """It cannot be expressed, `when` the value or the spec is so (`rest` says how); else it is."""
    return FeatureSupport(
        outcome=ExportOutcome.REFUSED,
        note=why,
        way_out=way_out,
        when=when,
        unless=unless,
        rest=rest,
    )


def row(
    title: str, fields: str, *cells: FeatureSupport, every: FeatureSupport | None = None
) -> SpecFeature:
    """A feature; `fields` are separated by spaces, `cells` stand in the order of the targets."""
    given = cells or (every,) * len(ExportTarget)
    return SpecFeature(
        title=title,
        fields=tuple(fields.split()),
        cells={target: cell for target, cell in zip(ExportTarget, given, strict=True) if cell},
    )


def feature_of(table: tuple[SpecFeature, ...], name: str) -> tuple[SpecFeature, str] | None:
    """The row that a field of the spec belongs to, and by which of its fields; None for none."""
    found = [(each, f) for each in table for f in each.fields if is_within(name, f)]
    return max(found, key=lambda item: len(item[1]), default=None)


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of one setting that somebody wrote."""

    setting: SpecSetting
    cell: FeatureSupport
    is_lost: bool
    """Whether the target refuses it, with this value and in this spec."""

    def loss(self) -> Loss:
        """The refusal."""
        return Loss(self.setting.place, self.cell.note, self.cell.way_out)


def fates(table: tuple[SpecFeature, ...], target: ExportTarget, spec: SystemSpec) -> Iterator[Fate]:
    """What becomes of each setting in `spec`.

    A part that is refused as a whole is told once, and what is in it is not told again.
    """
    told: list[str] = []
    for setting in written(spec):
        found = feature_of(table, setting.field)
        # An outer part, such as `endpoints[]`, has no row: all that is in it has.
        if found is None or any(is_within(setting.place, place) for place in told):
            continue
        feature, named = found
        # Whether the part was judged as a whole already: a field within it adds
        # nothing.
        if setting.field != named and feature.cells[target].outcome is ExportOutcome.REFUSED:
            continue
        cell = feature.cells[target]
        is_refused = cell.outcome is ExportOutcome.REFUSED and not cell.unless(spec)
        fate = Fate(setting, cell, is_refused and cell.when(setting.value))
        if fate.is_lost:
            told.append(setting.place)
        yield fate
