"""Processor of this machine, and its differences from the one that verified a model."""

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from headrace.runtimes.optimized.file import Processor

CPUINFO: Final = Path("/proc/cpuinfo")
_FEATURES: Final = """
avx f16c fma avx2 avx512f avx512dq avx512bw avx512vl avx512_vnni avx_vnni avx_vnni_int8
avx_vnni_int16 avx_ne_convert avx512_bf16 avx512_fp16 amx_tile amx_int8 amx_bf16 amx_fp16
asimd asimdhp asimddp i8mm bf16 sve sve2 svei8mm svebf16 sme sme2
"""
FEATURES: Final = tuple(_FEATURES.split())
"""Features by which ONNX Runtime and oneDNN choose kernels, by Linux's names: x86's first, then
ARM's. Adding a feature here makes models that were verified before be verified again.
"""
_MAX_BYTES: Final = 16 << 20
"""Limit of `/proc/cpuinfo`, which has a few kilobytes per core."""
_MAX_NAME: Final = 100
_MAX_REPORTED: Final = 6
_ARM_MAKERS: Final = {
    "0x41": "Arm",
    "0x46": "Fujitsu",
    "0x48": "HiSilicon",
    "0x4e": "NVIDIA",
    "0x51": "Qualcomm",
    "0x61": "Apple",
    "0xc0": "Ampere",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessorDifference:
    """Difference of a processor from the one that a model was verified on.

    Missing and additional features both matter. Without a feature, the replacement kernel is slower
    and may round or saturate differently. With an additional one, engines choose kernels that were
    not tested with this model: eight-bit products saturate with AVX2 but not with VNNI, so a model
    whose weights were fitted to AVX2 gives other outputs with VNNI, usually better ones, but not
    the approved ones.
    """

    lacks: tuple[str, ...] = ()
    """Features of the verification that this processor lacks."""
    adds: tuple[str, ...] = ()
    """Features of this processor that the verification lacked."""
    is_unknown: bool = False
    """Whether the features of either processor are unknown, so that they cannot be compared."""

    def __bool__(self) -> bool:
        """Whether there is a difference, or may be one."""
        return bool(self.lacks or self.adds or self.is_unknown)

    def __str__(self) -> str:
        """Return the difference as a clause about this processor."""
        if self.is_unknown:
            return "whose features may differ"
        parts = [f"which lacks {_some(self.lacks)}"] if self.lacks else []
        parts += [f"which additionally has {_some(self.adds)}"] if self.adds else []
        return " and ".join(parts)


def this_processor(cpuinfo: Path = CPUINFO) -> Processor:
    """Return the processor of this process; without features if Linux does not list them."""
    try:
        with cpuinfo.open("rb") as file:
            text = file.read(_MAX_BYTES).decode("utf-8", "replace")
    except OSError:
        text = ""
    parsed = parse_cpuinfo(text)
    if parsed.name:
        return parsed
    return Processor(
        name=platform.processor() or platform.machine() or "unknown", features=parsed.features
    )


def parse_cpuinfo(text: str) -> Processor:
    """Return the first core's name and the features that all cores in `/proc/cpuinfo` have.

    A thread may run on any core. The name is empty if it is absent.
    """
    name = maker = part = ""
    common: set[str] | None = None
    for line in text.splitlines():
        key, separator, value = line.partition(":")
        if not separator:
            continue
        value = value.strip()
        match key.strip().lower():
            case "model name" if not name:
                name = value
            case "cpu implementer" if not maker:
                maker = value.lower()
            case "cpu part" if not part:
                part = value
            case "flags" | "features":
                here = set(value.lower().split())
                common = here if common is None else common & here
            case _:
                continue
    if not name and maker:
        name = f"{_ARM_MAKERS.get(maker, f'maker {maker}')} {part}"
    return Processor(
        name=plain(name),
        features=tuple(feature for feature in FEATURES if feature in (common or ())),
    )


def missing_features(verified: Processor, here: Processor) -> tuple[str, ...]:
    """Return the features of the verification that are missing here."""
    return tuple(sorted(set(verified.features) - set(here.features)))


def change(verified: Processor, here: Processor) -> ProcessorDifference:
    """Return the difference of `here` from the verified processor; false if there is none.

    Names are not compared: processors of several makers run the same kernels.
    """
    if not verified.features or not here.features:
        return ProcessorDifference(is_unknown=True)
    return ProcessorDifference(
        lacks=missing_features(verified, here), adds=missing_features(here, verified)
    )


def _some(features: tuple[str, ...]) -> str:
    more = len(features) - _MAX_REPORTED
    names = ", ".join(features[:_MAX_REPORTED])
    return f"{names} and {more} more" if more > 0 else names


def plain(name: str) -> str:
    """Return a name on one short line, without terminal control characters."""
    printable = "".join(character for character in name if character.isprintable())
    return " ".join(printable.split())[:_MAX_NAME].strip()
