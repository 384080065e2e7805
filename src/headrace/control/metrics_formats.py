"""Prometheus text format 0.0.4 and OpenMetrics 1.0, and the choice between them.

Names of series and their labels are the same in both, so that a scraper may change its format.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from headrace.control.metrics import Families, Family, Sample


@dataclass(frozen=True, slots=True)
class Format:
    """One format: what it is called, and how metrics become bytes in it."""

    content_type: str
    render: Callable[[Families], bytes]


def text(families: Families) -> bytes:
    """Prometheus' text format 0.0.4."""
    lines: list[str] = []
    for name, family in families.items():
        if family.help is not None:
            lines.append(f"# HELP {name} {family.help}\n")
        if family.type is not None:
            lines.append(f"# TYPE {name} {family.type}\n")
        lines += [f"{each.name}{each.labels} {each.value}\n" for each in family.samples]
    return "".join(lines).encode()


def openmetrics(families: Families) -> bytes:
    """OpenMetrics 1.0. What it calls a counter ends in `_total`: others are of unknown type.

    So is a counter without whose `_total` another metric has its name, as some of Envoy's do.
    """
    lines = [
        line
        for name, family in families.items()
        for line in _openmetrics(name, family, is_clear=name.removesuffix("_total") not in families)
    ]
    return "".join([*lines, "# EOF\n"]).encode()


def _openmetrics(name: str, family: Family, *, is_clear: bool) -> Iterator[str]:
    kind = family.type or "unknown"
    if kind == "counter" and name.endswith("_total") and is_clear:
        name = name.removesuffix("_total")
    elif kind in {"counter", "untyped"}:
        kind = "unknown"
    yield f"# TYPE {name} {kind}\n"
    if family.help is not None:
        quoted = family.help.replace('"', r"\"")
        yield f"# HELP {name} {quoted}\n"
    for each in family.samples:
        exemplar = each.exemplar if _takes_exemplar(each) else ""
        yield f"{each.name}{each.labels} {each.value}{exemplar}\n"


def _takes_exemplar(sample: Sample) -> bool:
    return sample.name.endswith(("_bucket", "_total"))


TEXT: Final = Format("text/plain; version=0.0.4; charset=utf-8", text)
OPENMETRICS: Final = Format(
    "application/openmetrics-text; version=1.0.0; charset=utf-8", openmetrics
)

_MEDIA: Final = {"text/plain": TEXT, "application/openmetrics-text": OPENMETRICS}
_VERSIONS: Final = {"", "1.0.0"}


def negotiate(accept: str) -> Format:
    """The format that `accept` weighs highest; the text format if it names neither."""
    best, best_weight = TEXT, 0.0
    for item in accept.split(","):
        media, *rest = (part.strip() for part in item.split(";"))
        parameters = dict(part.partition("=")[::2] for part in rest)
        chosen, weight = _MEDIA.get(media.lower()), _weight(parameters.get("q", "1"))
        if chosen is OPENMETRICS and parameters.get("version", "") not in _VERSIONS:
            continue
        if chosen is not None and weight > best_weight:
            best, best_weight = chosen, weight
    return best


def _weight(text: str) -> float:
    return float(text) if re.fullmatch(r"[01](?:\.[0-9]{0,3})?", text) else 0.0
