"""Which format does a scraper read, and how are metrics written in it?

The text format 0.0.4, OpenMetrics (with exemplars), or protobuf (with native histograms). Names of
series and their labels are the same in all three, so nothing starts anew when a scraper changes.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from headrace.control.metrics import Families, Family, Sample
from headrace.control.metrics_protobuf import protobuf


@dataclass(frozen=True, slots=True)
class Format:
    """One format: what it is called, and how metrics become bytes in it."""

    content_type: str
    render: Callable[[Families], bytes]
    has_exemplars: bool = False


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
    "application/openmetrics-text; version=1.0.0; charset=utf-8", openmetrics, has_exemplars=True
)
PROTOBUF: Final = Format(
    "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited",
    protobuf,
    has_exemplars=True,
)

_MEDIA: Final = {
    "text/plain": TEXT,
    "application/openmetrics-text": OPENMETRICS,
    "application/vnd.google.protobuf": PROTOBUF,
}
_MESSAGE: Final = "io.prometheus.client.MetricFamily"
_VERSIONS: Final = {"", "1.0.0"}


def negotiate(accept: str, *, native: bool = True) -> Format:
    """What a scraper that says `accept` likes best; the text format if it says nothing known.

    Args:
        native: Whether that may be protobuf, which has native histograms.
    """
    best, best_weight = TEXT, 0.0
    for item in accept.split(","):
        media, *rest = (part.strip() for part in item.split(";"))
        parameters = dict(part.partition("=")[::2] for part in rest)
        found = _MEDIA.get(media.lower())
        weight = _weight(parameters.get("q", "1")) if native or found is not PROTOBUF else 0.0
        if found is not None and _is_ours(found, parameters) and weight > best_weight:
            best, best_weight = found, weight
    return best


def _is_ours(found: Format, parameters: dict[str, str]) -> bool:
    if found is PROTOBUF:
        is_message = parameters.get("proto", _MESSAGE) == _MESSAGE
        return is_message and parameters.get("encoding", "delimited") == "delimited"
    return found is TEXT or parameters.get("version", "") in _VERSIONS


def _weight(text: str) -> float:
    return float(text) if re.fullmatch(r"[01](?:\.[0-9]{0,3})?", text) else 0.0
