"""What stands in `optimized.json`: which engine runs the model, and on what that was proved."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

import msgspec

from headrace.runtimes.tuning import UNTUNED, Tuning

FILE_NAME: Final = "optimized.json"
SCHEMA: Final = 1


class OtherProcessor(StrEnum):
    """What to do at load where the processor has other features than the model was verified with.

    Fewer or more: see `headrace.runtimes.processor.Change`.
    """

    VERIFY = "verify"
    """Ask again what it was asked then, and refuse it if the answers differ."""
    REFUSE = "refuse"
    ALLOW = "allow"
    """Serve it, and say so in the log."""


class Member(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One engine with its file. `path` is relative to the manifest's directory.

    `up_to_rows`: batches of so many rows and fewer go to it, if to no member before; None for all.
    """

    runtime: str
    path: str
    tuning: Tuning = UNTUNED
    up_to_rows: int | None = None


class Check(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Requests with the answers that were given when the model was verified, to ask again.

    `path`: an `.npz` with `in/NUMBER/NAME` and `out/NUMBER/NAME`. `tolerance`: how far an answer
    may be from that, relative to the largest magnitude in its output; a share of
    `max_changed_ratio` of the rows may get another class. Both from 0 to 1.
    """

    path: str
    tolerance: float
    max_changed_ratio: float


class Processor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`features`: those that matter for speed or for rounding, by Linux's names (`avx512_vnni`)."""

    name: str
    features: tuple[str, ...]


class OptimizedManifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An optimized model. `versions`: of the packages that made it, for people.

    `recipe`: what was done, in words and figures. `source_digest`: of the model it was made of.
    `calibration_sha256`: of the examples it was calibrated with; empty where there were none.
    `figures`: what was measured, for people and programs: `p50_s`, `cut_ratio` and so on.
    """

    schema: int = SCHEMA
    members: tuple[Member, ...]
    processor: Processor
    on_other_processor: OtherProcessor = OtherProcessor.VERIFY
    check: Check | None = None
    source_digest: str = ""
    calibration_sha256: str = ""
    recipe: Mapping[str, str] = {}
    versions: Mapping[str, str] = {}
    figures: Mapping[str, float] = {}
