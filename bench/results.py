"""What a suite found: tables for people, JSON for comparing runs, targets that hold or not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from bench.windows import Rounds, Spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A promise and the figure that keeps or breaks it.

    `value` must be at least `limit`, or at most if `is_ceiling`.
    """

    text: str
    value: float
    limit: float
    unit: str = ""
    is_ceiling: bool = False

    @property
    def is_met(self) -> bool:
        """Whether the promise is kept."""
        return self.value <= self.limit if self.is_ceiling else self.value >= self.limit

    def __str__(self) -> str:
        verdict = "pass" if self.is_met else "FAIL"
        bound = "<=" if self.is_ceiling else ">="
        figure = f"{self.value:.4g} {self.unit}".rstrip()
        return f"{verdict}  {self.text}: {figure} (wanted {bound} {self.limit:g})"

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "text": self.text,
            "value": self.value,
            "limit": self.limit,
            "unit": self.unit,
            "bound": "at most" if self.is_ceiling else "at least",
            "met": self.is_met,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows under headings, as text."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __str__(self) -> str:
        lines = [list(self.headings), *[list(row) for row in self.rows]]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.headings))]
        rule = ["-" * width for width in widths]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in [lines[0], rule, *lines[1:]]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteResult:
    """All of one suite. `skipped` says why it did not run; empty if it did."""

    name: str
    table: Table | None = None
    targets: Sequence[Target] = ()
    notes: Sequence[str] = ()
    rounds: Rounds = field(default_factory=dict)
    skipped: str = ""

    @property
    def noisy(self) -> int:
        """Windows in which strangers used more of the machine than a fair figure allows."""
        return sum(not window.is_quiet for windows in self.rounds.values() for window in windows)

    @property
    def is_met(self) -> bool:
        """Whether every target is; a skipped suite breaks none."""
        return all(target.is_met for target in self.targets)

    def __str__(self) -> str:
        if self.skipped:
            return f"skipped: {self.skipped}"
        parts = [str(self.table)] if self.table else []
        parts += [str(target) for target in self.targets]
        parts += [f"note  {note}" for note in self.notes]
        if self.noisy:
            total = sum(map(len, self.rounds.values()))
            parts.append(f"NOISY {self.noisy} of {total} windows had foreign load: take it again")
        return "\n".join(parts)

    def document(self) -> dict[str, Any]:
        """As JSON: every window with its figures, and who used the processors."""
        return {
            "skipped": self.skipped,
            "targets": [target.document() for target in self.targets],
            "notes": list(self.notes),
            "noisy_windows": self.noisy,
            "windows": {
                arm: [
                    {
                        "figures": dict(window.figures),
                        "cores_used": dict(window.usage.by_part),
                        "foreign_cores": window.usage.foreign,
                        "stolen_cores": window.usage.stolen,
                    }
                    for window in windows
                ]
                for arm, windows in self.rounds.items()
            },
        }


def cores_used(rounds: Rounds, arm: str, part: str) -> str:
    """Median cores that a part of the system used while an arm was measured."""
    values = sorted(window.usage.by_part.get(part, 0.0) for window in rounds[arm])
    return f"{values[len(values) // 2]:.2f}"


def cell(value: Spread, digits: int = 0) -> str:
    """A spread in a table: median, then lowest to highest."""
    return f"{value.median:,.{digits}f} [{value.low:,.{digits}f} to {value.high:,.{digits}f}]"


def store(document: Mapping[str, Any], folder: Path, stamp: str) -> Path:
    """Write a run under its time and as `latest.json`; its path."""
    folder.mkdir(parents=True, exist_ok=True)
    data = msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"
    path = folder / f"{stamp}.json"
    path.write_bytes(data)
    (folder / "latest.json").write_bytes(data)
    return path
