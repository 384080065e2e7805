"""What can each target express? The words of the table, and what follows from it for a spec."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from headrace.core.spec import SystemSpec
from headrace.deploy.losses import Loss
from headrace.deploy.written import Written, is_within, written


class Target(StrEnum):
    """A system that a spec is exported for; the command is named like it."""

    GATEWAY_API = "gateway-api"
    KSERVE = "kserve"
    ARGO_ROLLOUTS = "argo-rollouts"
    KONG = "kong"
    AWS_APIGATEWAY = "aws-apigateway"
    ENVOY = "envoy"


class Outcome(StrEnum):
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
class Cell:
    """One feature in one target.

    `note`: how it is expressed, or who keeps it, or why not. `way_out`: of a refusal. `when`: for
    which values it is as `outcome` says; for all others it is expressed. `unless`: for which specs
    it is expressed whatever the value.
    """

    outcome: Outcome
    note: str = ""
    way_out: str = ""
    when: Holds = field(default=_always, compare=False)
    unless: Overrules = field(default=_never, compare=False)
    rest: str = ""
    """Says in the documentation for which values a refusal holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """A row of the table: some fields of the spec that share a fate. Longer fields go first."""

    title: str
    fields: tuple[str, ...]
    cells: Mapping[Target, Cell]


def yes(note: str = "") -> Cell:
    """It is expressed, exactly."""
    return Cell(outcome=Outcome.EXPRESSED, note=note)


def about(note: str) -> Cell:
    """Something close to it is expressed, which `note` tells."""
    return Cell(outcome=Outcome.APPROXIMATED, note=note)


def kept(note: str) -> Cell:
    """It is not the target's business; `note` says whose it is."""
    return Cell(outcome=Outcome.KEPT, note=note)


def no(
    why: str, way_out: str, *, when: Holds = _always, unless: Overrules = _never, rest: str = ""
) -> Cell:
    """It cannot be expressed, `when` the value or the spec is so (`rest` says how); else it is."""
    return Cell(
        outcome=Outcome.REFUSED, note=why, way_out=way_out, when=when, unless=unless, rest=rest
    )


def row(title: str, fields: str, *cells: Cell, every: Cell | None = None) -> Feature:
    """A feature; `fields` are separated by spaces, `cells` stand in the order of the targets."""
    given = cells or (every,) * len(Target)
    return Feature(
        title=title,
        fields=tuple(fields.split()),
        cells={target: cell for target, cell in zip(Target, given, strict=True) if cell},
    )


def feature_of(table: tuple[Feature, ...], name: str) -> tuple[Feature, str] | None:
    """The row that a field of the spec belongs to, and by which of its fields; None for none."""
    found = [(each, f) for each in table for f in each.fields if is_within(name, f)]
    return max(found, key=lambda item: len(item[1]), default=None)


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of one setting that somebody wrote."""

    setting: Written
    cell: Cell
    is_lost: bool
    """Whether the target refuses it, with this value and in this spec."""

    def loss(self) -> Loss:
        """The refusal."""
        return Loss(self.setting.place, self.cell.note, self.cell.way_out)


def fates(table: tuple[Feature, ...], target: Target, spec: SystemSpec) -> Iterator[Fate]:
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
        if setting.field != named and _is_told_with_outer(feature.cells[target]):
            continue
        cell = feature.cells[target]
        is_refused = cell.outcome is Outcome.REFUSED and not cell.unless(spec)
        fate = Fate(setting, cell, is_refused and cell.when(setting.value))
        if fate.is_lost:
            told.append(setting.place)
        yield fate


def _is_told_with_outer(cell: Cell) -> bool:
    """Whether the part was judged as a whole already: a field within it adds nothing."""
    return cell.outcome is Outcome.REFUSED
