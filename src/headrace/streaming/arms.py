"""Which of a stream's versions scores a record, and do two answers agree? Pure.

The part of a canary is chosen by its key as the gateway chooses for a sticky split: XXH64 of
`SALT:KEY`, modulo 100, below its percentage. With one salt, a caller of an endpoint and a record of
a stream with the same key meet the same version.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np

from headrace.core import Array, Tensors
from headrace.streaming.xxh64 import xxh64

_WHOLE: Final = 100


class Arm(StrEnum):
    """What a version is to its stream."""

    PRIMARY = "primary"
    CANARY = "canary"
    SHADOW = "shadow"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmRun:
    """What a version did for one batch; see `ArmCounters`."""

    arm: Arm
    version: str
    records: int = 0
    errors: int = 0
    seconds: float = 0.0
    skipped: int = 0
    compared: int = 0
    agreed: int = 0
    difference: float = 0.0


def is_chosen(unit: bytes, *, salt: str, percent: int) -> bool:
    """Whether a unit is among the first `percent` of a hundred."""
    return xxh64(salt.encode() + b":" + unit) % _WHOLE < percent


def difference(one: Tensors, other: Tensors) -> float:
    """The largest absolute difference of two answers; infinite where they cannot be compared.

    Outputs that only one of them has are left out. NaN equals NaN.
    """
    shared = one.keys() & other.keys()
    if not shared:
        return np.inf
    return max(_difference(one[name], other[name]) for name in shared)


def _difference(one: Array, other: Array) -> float:
    if one.shape != other.shape:
        return np.inf
    if one.size == 0:
        return 0.0
    if one.dtype.kind not in "biuf" or other.dtype.kind not in "biuf":
        return 0.0 if bool((one == other).all()) else np.inf
    first, second = one.astype(np.float64), other.astype(np.float64)
    same = (first == second) | (np.isnan(first) & np.isnan(second))
    with np.errstate(invalid="ignore"):
        apart = np.where(same, 0.0, np.abs(first - second))
    return float(np.nan_to_num(apart, nan=np.inf, posinf=np.inf).max())
