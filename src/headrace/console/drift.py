"""Drift rows of an endpoint's page, the worst first, as the API ranks them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from headrace.control.api.features import DriftView, FeatureView
from headrace.control.telemetry.labels import LiveScore
from headrace.core.text import coarse_span, number_text, percent_text

MOST: Final = 20
_NAMED: Final = 5
_FULL: Final = 100
_STATES: Final = {"ok": "ok", "drifted": "failing", "collecting": "idle"}
_WORDS: Final = {"ok": "no drift", "drifted": "drifted", "collecting": "collecting"}


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftRow:
    """One feature. `look`: of its state; `filled`: how much of the evidence is there, in percent.

    `needed` is 0 while there is nothing to compare with.
    """

    name: str
    role: str
    look: str
    word: str
    why: str
    psi: float | None
    js: float | None
    ks: float | None
    missing_ratio: float | None
    evidence: float
    needed: float
    filled: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftShown:
    """The section of an endpoint's page.

    `drifted`: the names of features that did, some of them; `more` others have no row. `waiting`:
    why nothing can be said yet; empty if it can. `live`: how right answers were.
    """

    version: str
    rows: Sequence[DriftRow]
    more: int
    drifted: str
    waiting: str
    live: Sequence[str]


def drift_of(found: DriftView | None) -> DriftShown | None:
    """What is shown; None where nothing is watched."""
    if found is None or found.state == "off":
        return None
    names = [_name(one) for one in found.features if one.state == "drifted"]
    others = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return DriftShown(
        version=found.version,
        rows=[_row(one) for one in found.features[:MOST]],
        more=max(len(found.features) - MOST, 0),
        drifted=", ".join(names[:_NAMED]) + others,
        waiting=_waiting(found),
        live=[text for one in found.live if (text := _live(one))],
    )


def _row(one: FeatureView) -> DriftRow:
    return DriftRow(
        name=_name(one),
        role=one.role,
        look=_STATES.get(one.state, "idle"),
        word=_WORDS.get(one.state, one.state),
        why=one.why,
        psi=one.psi,
        js=one.js,
        ks=one.ks,
        missing_ratio=one.missing_ratio,
        evidence=one.evidence,
        needed=one.needed,
        filled=_filled(one),
    )


def _filled(one: FeatureView) -> float:
    if one.needed <= 0:
        return 0.0
    return round(min(max(one.evidence / one.needed, 0.0), 1.0) * _FULL, 1)


def _name(one: FeatureView) -> str:
    return f"{one.name} ({one.label})" if one.label else one.name


def _waiting(found: DriftView) -> str:
    reference = found.reference
    if reference is None:
        return "No replica has told yet what it counted."
    if found.state != "collecting":
        return ""
    if reference.collected_rows < reference.window_rows:
        return (
            "The first rows become what later ones are compared with: "
            f"{reference.collected_rows:,} of {reference.window_rows:,} are there."
        )
    return "Too few rows have come to compare yet."


def _live(one: LiveScore) -> str:
    """How right answers of a span were, in words; empty without a label."""
    if not one.rows:
        return ""
    of = f"of {one.rows:,} labelled answers of the last {coarse_span(one.seconds)}"
    if one.accuracy is not None:
        return f"{percent_text(one.accuracy)} right, {of}"
    return f"{number_text(one.mean_error)} off on average, {of}"
