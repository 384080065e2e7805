"""How are metrics written as protobuf, with native histograms?

Messages are those of `io.prometheus.client`, each behind its length. A scraper that asks for them
gets each histogram as one series of exponential buckets (schema 4: each is 4.4 % wider than the one
before), and the classic buckets beside it.
https://github.com/prometheus/client_model/blob/master/io/prometheus/client/metrics.proto
"""

import math
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from headrace.control.metrics import Families, Family, Sample

SCHEMA: Final = 4
_PER_DOUBLING: Final = 1 << SCHEMA

_KINDS: Final = {"counter": 0, "gauge": 1, "untyped": 3, "histogram": 4}
_UNTYPED: Final = 3
_VALUE_FIELDS: Final = {0: 3, 1: 2, 3: 5}  # Metric.counter, .gauge, .untyped
_HISTOGRAM_FIELD: Final = 7
_PAIR: Final = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\[\\n"])*)"')
_EXEMPLAR: Final = re.compile(r" # (\{.*\}) (\S+)(?: (\S+))?")

Labels = tuple[tuple[str, str], ...]


def protobuf(families: Families) -> bytes:
    """All families, each behind its length."""
    return b"".join(_delimited(_family(name, family)) for name, family in families.items())


def _family(name: str, family: Family) -> bytes:
    kind = _KINDS.get(family.type or "", _UNTYPED)
    parts = [_text(1, name)]
    if family.help is not None:
        parts.append(_text(2, _unescaped(family.help)))
    parts.append(_varint_field(3, kind))
    if family.type == "histogram":
        parts += [_bytes(4, metric) for metric in _histograms(name, family.samples)]
    else:
        parts += [_bytes(4, _metric(kind, each)) for each in family.samples]
    return b"".join(parts)


def _metric(kind: int, sample: Sample) -> bytes:
    value = _double(1, float(sample.value))
    return _labels(_pairs(sample.labels)) + _bytes(_VALUE_FIELDS[kind], value)


@dataclass(slots=True)
class _Buckets:
    bounds: list[float] = field(default_factory=list)
    below: list[int] = field(default_factory=list)
    exemplars: list[str] = field(default_factory=list)
    sum: float = 0.0


def _histograms(name: str, samples: Iterable[Sample]) -> Iterator[bytes]:
    found: dict[Labels, _Buckets] = {}
    for each in samples:
        pairs = _pairs(each.labels)
        labels = tuple(pair for pair in pairs if pair[0] != "le")
        buckets = found.setdefault(labels, _Buckets())
        if each.name == f"{name}_bucket":
            buckets.bounds.append(float(dict(pairs).get("le", "+Inf")))
            buckets.below.append(int(float(each.value)))
            buckets.exemplars.append(each.exemplar)
        elif each.name == f"{name}_sum":
            buckets.sum = float(each.value)
    for labels, buckets in found.items():
        yield _labels(labels) + _bytes(_HISTOGRAM_FIELD, _histogram(buckets))


def _histogram(buckets: _Buckets) -> bytes:
    total = buckets.below[-1] if buckets.below else 0
    zero, native = to_native(buckets.bounds, buckets.below)
    classic = (
        _bytes(3, _bucket(*each))
        for each in zip(buckets.bounds, buckets.below, buckets.exemplars, strict=True)
    )
    first = next((bound for bound in buckets.bounds if bound > 0), 0.0)
    return b"".join(
        [
            _varint_field(1, total),
            _double(2, buckets.sum),
            *classic,
            _double(4, float(total)),
            _varint_field(5, _zigzag(SCHEMA)),
            _double(6, first if math.isfinite(first) else 0.0),
            _double(8, zero),
            *_spans(sorted(native)),
            *(_double(14, native[index]) for index in sorted(native)),
        ]
    )


def _bucket(bound: float, below: int, exemplar: str) -> bytes:
    parts = _varint_field(1, below) + _double(2, bound)
    match = _EXEMPLAR.fullmatch(exemplar)
    if match is None:
        return parts
    labels, value, at = match.groups()
    content = _labels(_pairs(labels)) + _double(2, float(value))
    if at is not None:
        seconds, part = divmod(float(at), 1)
        stamp = _varint_field(1, int(seconds)) + _varint_field(2, int(part * 1e9))
        content += _bytes(3, stamp)
    return parts + _bytes(3, content)


def to_native(bounds: Sequence[float], below: Sequence[int]) -> tuple[float, dict[int, float]]:
    """What is near zero, and counts by exponential bucket: index i ends at 2^(i / 16).

    Each bucket's requests are spread evenly over it. Counts are fractions, so that none ever falls:
    a scraper would take that for a restart. What is above the highest bound stands right above it.
    """
    zero = 0.0
    found: dict[int, float] = {}
    lower, before = 0.0, 0
    for bound, running in zip(bounds, below, strict=True):
        count, before = running - before, running
        if count and lower == 0.0 and math.isfinite(bound):
            zero += count
        elif count and math.isinf(bound):
            index = _index(lower) + 1
            found[index] = found.get(index, 0.0) + count
        elif count:
            for index in range(_index(lower), _index(bound) + 1):
                part = min(bound, _end(index)) - max(lower, _end(index - 1))
                if part > 0:
                    found[index] = found.get(index, 0.0) + count * part / (bound - lower)
        lower = bound
    return zero, found


def _index(value: float) -> int:
    return math.ceil(math.log2(value) * _PER_DOUBLING) if value > 0 else 0


def _end(index: int) -> float:
    return float(2.0 ** (index / _PER_DOUBLING))


def _spans(indices: Sequence[int]) -> Iterator[bytes]:
    """Runs of indices that follow each other: the gap before each, and how long it is."""
    runs: list[tuple[int, int]] = []
    for index in indices:
        if runs and sum(runs[-1]) == index:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((index, 1))
    end = 0
    for start, length in runs:
        yield _bytes(12, _varint_field(1, _zigzag(start - end)) + _varint_field(2, length))
        end = start + length


def _pairs(labels: str) -> Labels:
    return tuple((name, _unescaped(value)) for name, value in _PAIR.findall(labels))


def _labels(pairs: Labels) -> bytes:
    return b"".join(_bytes(1, _text(1, name) + _text(2, value)) for name, value in pairs)


_ESCAPES: Final = {r"\\": "\\", r"\n": "\n", r"\"": '"'}


def _unescaped(text: str) -> str:
    return re.sub(r'\\[\\n"]', lambda match: _ESCAPES[match[0]], text)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:  # noqa: PLR2004  # seven bits to a byte
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _zigzag(value: int) -> int:
    return value << 1 if value >= 0 else (-value << 1) - 1


def _varint_field(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _double(number: int, value: float) -> bytes:
    return _varint(number << 3 | 1) + struct.pack("<d", value)


def _bytes(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _delimited(value)


def _delimited(value: bytes) -> bytes:
    return _varint(len(value)) + value


def _text(number: int, value: str) -> bytes:
    return _bytes(number, value.encode())
