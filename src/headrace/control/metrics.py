"""How do the metrics of many processes become one?

In the text format a family stands once: one HELP, one TYPE, then all its samples. So families are
merged by name, and a label tells whose a sample is.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

_NAME: Final = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_META: Final = re.compile(rf"# (HELP|TYPE) ({_NAME})(?: (.*))?$")
_PAIR: Final = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\]|\\[\\n"])*"'
_LABELS: Final = rf"\{{(?:{_PAIR}(?:,{_PAIR})*,?)?\}}"
_VALUE: Final = r"[+-]?(?:[0-9]+\.?[0-9]*(?:[eE][+-]?[0-9]+)?|Inf|NaN)"
_EXEMPLAR: Final = rf" # {_LABELS} {_VALUE}(?: {_VALUE})?"
_SAMPLE: Final = re.compile(rf"({_NAME})({_LABELS})? ({_VALUE})( -?[0-9]+)?({_EXEMPLAR})?$")
_WHOLE: Final = 1 << 53
_SUFFIXES: Final = ("", "_bucket", "_sum", "_count", "_created", "_total", "_info")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One process's exposition, and the labels that its samples get.

    `help`: of metrics that say nothing of what they are. They are of a program that keeps no
    conventions, so what it calls a counter is one only if its name says so too.
    """

    text: str
    labels: Mapping[str, str] = field(default_factory=dict)
    help: str = ""


class Sample(NamedTuple):
    """One value, as the text format has it: `labels` with their braces, or empty.

    `exemplar`: as OpenMetrics has it, with the space before the sign in front.
    """

    name: str
    labels: str
    value: str
    exemplar: str = ""


@dataclass(slots=True)
class Family:
    """One metric: what it is, and its samples. `help`: escaped as in the text format."""

    help: str | None = None
    type: str | None = None
    samples: list[Sample] = field(default_factory=list)


Families = Mapping[str, Family]
"""Metrics by name; a counter's name ends in `_total`, as in the text format."""


def merge(sources: Iterable[Source]) -> Families:
    """The samples of all `sources`, by family.

    The first HELP and TYPE of a family hold. Lines that are neither a sample nor HELP or TYPE are
    dropped, so that one broken process cannot spoil the answer for all. So are times of samples:
    everything is of now.
    """
    families: dict[str, Family] = {}
    for source in sources:
        _read(source, families)
    return {name: family for name, family in families.items() if family.samples}


def _read(source: Source, families: dict[str, Family]) -> None:
    current = ""
    extra = {name: _escaped(value) for name, value in source.labels.items()}
    for line in source.text.splitlines():
        meta = _META.match(line)
        if meta is not None:
            kind, current, text = meta.groups()
            family = families.setdefault(current, Family())
            if kind == "HELP" and family.help is None:
                family.help = text or ""
            elif kind == "TYPE" and family.type is None:
                family.type = _type(current, text or "untyped", source)
                family.help = family.help or source.help or None
            continue
        sample = _SAMPLE.match(line)
        if sample is None:
            continue
        name, labels, value, _, exemplar = sample.groups()
        if not any(name == current + suffix for suffix in _SUFFIXES):
            current = name
        merged = _with_labels(labels or "", extra)
        families.setdefault(current, Family()).samples.append(
            Sample(name, merged, value, exemplar or "")
        )


def _type(name: str, text: str, source: Source) -> str:
    is_doubtful = source.help and text == "counter" and not name.endswith("_total")
    return "untyped" if is_doubtful else text


def named(families: Families, prefixes: Sequence[str]) -> Families:
    """Those whose names begin with one of `prefixes`; all if there are none."""
    if not prefixes:
        return families
    start = tuple(prefixes)
    return {name: family for name, family in families.items() if name.startswith(start)}


def _with_labels(labels: str, extra: Mapping[str, str]) -> str:
    """`{a="1"}` with `extra` in front, except names that are there already."""
    inner = labels[1:-1].strip().rstrip(",")
    added = [
        f'{name}="{value}"'
        for name, value in extra.items()
        # The second look costs ten times the first, which hardly ever finds anything.
        if name not in inner or re.search(rf'(?:^|,)\s*{name}\s*=\s*"', inner) is None
    ]
    joined = ",".join([*added, inner] if inner else added)
    return f"{{{joined}}}" if joined else ""


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


Labels = tuple[tuple[str, str], ...]
"""Pairs of a label's name and value."""


def gauge(name: str, text: str, samples: Iterable[tuple[Labels, float]]) -> str:
    """One gauge in the text format."""
    return _family("gauge", name, text, samples)


def counter(name: str, text: str, samples: Iterable[tuple[Labels, float]]) -> str:
    """One counter in the text format; its name ends in `_total`."""
    return _family("counter", name, text, samples)


@dataclass(frozen=True, slots=True, kw_only=True)
class HistogramSample:
    """One histogram: how many values were at most as large as each bound, and all values' sum.

    `below` has one more than `bounds`: all values.
    """

    labels: Labels
    bounds: Sequence[float]
    below: Sequence[int]
    sum: float


def histogram(name: str, text: str, samples: Iterable[HistogramSample]) -> str:
    """One histogram in the text format."""
    lines = _head("histogram", name, text)
    for sample in samples:
        for bound, count in zip((*sample.bounds, math.inf), sample.below, strict=True):
            labels = _labels((*sample.labels, ("le", repr(bound) if bound < math.inf else "+Inf")))
            lines.append(f"{name}_bucket{labels} {count}")
        labels = _labels(sample.labels)
        lines.append(f"{name}_sum{labels} {number(sample.sum)}")
        lines.append(f"{name}_count{labels} {sample.below[-1]}")
    return "".join(f"{line}\n" for line in lines)


def _family(kind: str, name: str, text: str, samples: Iterable[tuple[Labels, float]]) -> str:
    lines = _head(kind, name, text)
    lines += [f"{name}{_labels(pairs)} {number(value)}" for pairs, value in samples]
    return "".join(f"{line}\n" for line in lines)


def _head(kind: str, name: str, text: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def _labels(pairs: Labels) -> str:
    labels = ",".join(f'{label}="{_escaped(content)}"' for label, content in pairs)
    return f"{{{labels}}}" if labels else ""


def number(value: float) -> str:
    """`value` as the formats have it, with all its digits: a counter may be large."""
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    if math.isnan(value):
        return "NaN"
    return str(int(value)) if value == int(value) and abs(value) < _WHOLE else repr(float(value))
