"""Metric families of all processes: merged, and written as Prometheus text or OpenMetrics.

A family occurs once in an exposition: HELP, TYPE, then all its samples. Families are therefore
merged by name, and a label names the process of a sample. `docs/explain/decisions/metrics.md`
explains why this is not `prometheus_client`.
"""

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from headrace.observe.histogram import Exemplars, Histogram

TEXT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""Content type of `text`."""
OPENMETRICS_TYPE: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"
"""Content type of `openmetrics`."""

Labels = tuple[tuple[str, str], ...]
"""Pairs of label name and value."""

_WHOLE: Final = 1 << 53
"""Floats below this represent integers exactly."""


class MetricSample(NamedTuple):
    """One sample of a metric in the text format."""

    name: str
    """Name of the sample."""
    labels: str
    """Labels with their braces, or empty."""
    value: str
    """Value as text."""
    exemplar: str = ""
    """OpenMetrics exemplar, with a leading space; or empty."""


@dataclass(slots=True)
class Family:
    """Metric and its samples."""

    name: str
    """Name as in the text format: a counter's ends in `_total`, unless the name is Triton's or
    NVIDIA's.
    """
    type: str | None = None
    """Prometheus type."""
    help: str | None = None
    """Help text, escaped as in the text format."""
    samples: list[MetricSample] = field(default_factory=list)
    """Samples of the metric."""


Families = Mapping[str, Family]
"""Families by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HistogramSample:
    """One histogram with cumulative counts."""

    labels: Labels
    """Labels of the histogram."""
    bounds: Sequence[float]
    """Upper bounds of the buckets."""
    below: Sequence[int]
    """Cumulative count at each bound, then the count of all values."""
    sum: float
    """Sum of all values."""
    exemplars: Sequence[str] = ()
    """Exemplar of each bucket as in `MetricSample`, or empty."""


def gauge(name: str, text: str, samples: Iterable[tuple[Labels, float]]) -> Family:
    """Return a gauge; `text` is its help."""
    return _family("gauge", name, text, samples)


def counter(name: str, text: str, samples: Iterable[tuple[Labels, float]]) -> Family:
    """Return a counter; `text` is its help."""
    return _family("counter", name, text, samples)


def _family(kind: str, name: str, text: str, samples: Iterable[tuple[Labels, float]]) -> Family:
    values = [MetricSample(name, _labels(pairs), number(value)) for pairs, value in samples]
    return Family(name, kind, text, values)


def histogram(name: str, text: str, samples: Iterable[HistogramSample]) -> Family:
    """Return a histogram; `text` is its help."""
    family = Family(name, "histogram", text)
    for sample in samples:
        labels = _labels(sample.labels)
        start = f'{labels[:-1]},le="' if labels else '{le="'
        bounds = (*map(repr, sample.bounds), "+Inf")
        exemplars = sample.exemplars or ("",) * len(bounds)
        family.samples += [
            MetricSample(f"{name}_bucket", f'{start}{bound}"}}', str(count), exemplar)
            for bound, count, exemplar in zip(bounds, sample.below, exemplars, strict=True)
        ]
        family.samples.append(MetricSample(f"{name}_sum", labels, number(sample.sum)))
        family.samples.append(MetricSample(f"{name}_count", labels, str(sample.below[-1])))
    return family


def histogram_sample(
    counted: Histogram,
    labels: Labels,
    indexes: Sequence[int] | None = None,
    exemplars: Exemplars | None = None,
) -> HistogramSample:
    """Return the sample of `counted` at the bounds `places` (None: all), with exemplars."""
    indexes = range(len(counted.bounds)) if indexes is None else indexes
    texts: list[str] = []
    if exemplars is not None:
        edges = [-1, *indexes, len(exemplars.due) - 1]
        for after, until in itertools.pairwise(edges):
            newest = exemplars.between(after, until)
            if newest is not None:
                label, content, value, at_s = newest
                texts.append(f' # {{{label}="{content}"}} {value} {at_s:.3f}')
            else:
                texts.append("")
    return HistogramSample(
        labels=labels,
        bounds=[counted.bounds[index] for index in indexes],
        below=counted.below(indexes),
        sum=counted.sum,
        exemplars=texts,
    )


def _labels(pairs: Labels) -> str:
    labels = ",".join([f'{label}="{_escaped(content)}"' for label, content in pairs])
    return f"{{{labels}}}" if labels else ""


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def number(value: float) -> str:
    """Return `value` in the formats' notation, with all digits: a counter may be large."""
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    if math.isnan(value):
        return "NaN"
    return str(int(value)) if value == int(value) and abs(value) < _WHOLE else repr(float(value))


def text(families: Iterable[Family], *, exemplars: bool = False) -> bytes:
    """Return the families in Prometheus text format 0.0.4.

    Args:
        exemplars: Whether buckets have exemplars, which only `merge` reads.
    """
    lines: list[str] = []
    for family in families:
        if family.help is not None:
            lines.append(f"# HELP {family.name} {family.help}\n")
        if family.type is not None:
            lines.append(f"# TYPE {family.name} {family.type}\n")
        if exemplars:
            lines += [f"{s.name}{s.labels} {s.value}{s.exemplar}\n" for s in family.samples]
        else:
            lines += [f"{s.name}{s.labels} {s.value}\n" for s in family.samples]
    return "".join(lines).encode()


def openmetrics(families: Families) -> bytes:
    """Return the families in OpenMetrics 1.0; only names with `_total` are counters there.

    Other counters have an unknown type. So has a counter whose name without `_total` is another
    metric's name, as some of Envoy's are.
    """
    lines = [
        line
        for name, family in families.items()
        for line in _openmetrics(family, is_clear=name.removesuffix("_total") not in families)
    ]
    return "".join([*lines, "# EOF\n"]).encode()


def _openmetrics(family: Family, *, is_clear: bool) -> Iterator[str]:
    name, kind = family.name, family.type or "unknown"
    if kind == "counter" and name.endswith("_total") and is_clear:
        name = name.removesuffix("_total")
    elif kind in {"counter", "untyped"}:
        kind = "unknown"
    yield f"# TYPE {name} {kind}\n"
    if family.help is not None:
        quoted = family.help.replace('"', r"\"")
        yield f"# HELP {name} {quoted}\n"
    for sample in family.samples:
        takes_exemplar = sample.name.endswith(("_bucket", "_total"))
        exemplar = sample.exemplar if takes_exemplar else ""
        yield f"{sample.name}{sample.labels} {sample.value}{exemplar}\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricSource:
    """Exposition of one process as text, and the labels that its samples get."""

    text: str
    labels: Mapping[str, str] = field(default_factory=dict)
    help: str = ""
    """Help of metrics without one. Such metrics come from a program that follows no conventions, so
    its counters are counters only if their names say so too.
    """


def merge(families: Iterable[Family], sources: Iterable[MetricSource] = ()) -> Families:
    """Return the samples of all `families` and `sources`, merged; empty families are left out.

    The first HELP and TYPE of a family apply. Lines of a source that are neither a sample nor HELP
    or TYPE are dropped, so that one broken process cannot invalidate the whole exposition.
    Timestamps of samples are dropped too, because all samples are current.
    """
    merged: dict[str, Family] = {}
    for family in families:
        before = merged.setdefault(family.name, Family(family.name, family.type, family.help))
        before.samples += family.samples
    for source in sources:
        _read(source, merged)
    return {name: family for name, family in merged.items() if family.samples}


_NAME: Final = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_META: Final = re.compile(rf"# (HELP|TYPE) ({_NAME})(?: (.*))?$")
_PAIR: Final = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\]|\\[\\n"])*"'
_LABELS: Final = rf"\{{(?:{_PAIR}(?:,{_PAIR})*,?)?\}}"
_VALUE: Final = r"[+-]?(?:[0-9]+\.?[0-9]*(?:[eE][+-]?[0-9]+)?|Inf|NaN)"
_EXEMPLAR: Final = rf" # {_LABELS} {_VALUE}(?: {_VALUE})?"
_SAMPLE: Final = re.compile(rf"({_NAME})({_LABELS})? ({_VALUE})( -?[0-9]+)?({_EXEMPLAR})?$")
_SUFFIXES: Final = ("", "_bucket", "_sum", "_count", "_created", "_total", "_info")


def _read(source: MetricSource, families: dict[str, Family]) -> None:
    current = ""
    extra = {name: _escaped(value) for name, value in source.labels.items()}
    for line in source.text.splitlines():
        meta = _META.match(line)
        if meta is not None:
            kind, current, content = meta.groups()
            family = families.setdefault(current, Family(current))
            if kind == "HELP" and family.help is None:
                family.help = content or ""
            elif kind == "TYPE" and family.type is None:
                is_doubtful = bool(source.help) and not current.endswith("_total")
                is_counter = content == "counter"
                family.type = "untyped" if is_doubtful and is_counter else content or "untyped"
                family.help = family.help or source.help or None
            continue
        sample = _SAMPLE.match(line)
        if sample is None:
            continue
        name, labels, value, _, exemplar = sample.groups()
        if not any(name == current + suffix for suffix in _SUFFIXES):
            current = name
        merged = _with_labels(labels or "", extra)
        families.setdefault(current, Family(current)).samples.append(
            MetricSample(name, merged, value, exemplar or "")
        )


def _with_labels(labels: str, extra: Mapping[str, str]) -> str:
    """Return `{a="1"}` with `extra` in front, except names that are already present."""
    inner = labels[1:-1].strip().rstrip(",")
    added = [
        f'{name}="{value}"'
        for name, value in extra.items()
        # The exact search takes ten times as long as the first check, and rarely finds anything.
        if name not in inner or re.search(rf'(?:^|,)\s*{name}\s*=\s*"', inner) is None
    ]
    joined = ",".join([*added, inner] if inner else added)
    return f"{{{joined}}}" if joined else ""
