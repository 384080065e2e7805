"""Processor of this machine, and its differences from the one that a model was verified on."""

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
"""Those by which ONNX Runtime's and oneDNN's kernels are chosen, as Linux calls them: first x86's,
then ARM's. One that is added here makes models that were verified before be verified again."""
_MAX_BYTES: Final = 16 << 20
"""A few kilobytes for each core."""
_MAX_NAME: Final = 100
_MOST_TOLD: Final = 6
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
    """How a processor differs from the one that a model was verified on.

    Both count. Without a feature, what takes its place is slower and may round, or saturate, in
    another way. With one more, engines choose kernels that nobody has seen run this model: eight
    bits multiplied by AVX2 saturate, and by VNNI they do not, so that a model whose weights were
    fitted to the first answers otherwise on the second, mostly better, but not as it was approved.
    """

    lacks: tuple[str, ...] = ()
    """Features that it was verified with and that are not here."""
    adds: tuple[str, ...] = ()
    """The reverse."""
    is_unknown: bool = False
    """Of one of the two no features are known, so that nothing can be said."""

    def __bool__(self) -> bool:
        """Whether there is any difference, or may be."""
        return bool(self.lacks or self.adds or self.is_unknown)

    def __str__(self) -> str:
        """As a half-sentence about this processor."""
        if self.is_unknown:
            return "whose features may differ"
        parts = [f"which lacks {_some(self.lacks)}"] if self.lacks else []
        parts += [f"which additionally has {_some(self.adds)}"] if self.adds else []
        return " and ".join(parts)


def this_processor(cpuinfo: Path = CPUINFO) -> Processor:
    """The processor that this process runs on; without features where Linux does not tell them."""
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
    """What `/proc/cpuinfo` says: the name of the first core, and the features that all cores have.

    A thread may run on any of them. The name is empty where there is none.
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
    """What a model was verified with and is not here."""
    return tuple(sorted(set(verified.features) - set(here.features)))


def change(verified: Processor, here: Processor) -> ProcessorDifference:
    """How `here` differs from the processor that a model was verified on; false if it does not.

    Names are not compared: processors of several makers run the same kernels.
    """
    if not verified.features or not here.features:
        return ProcessorDifference(is_unknown=True)
    return ProcessorDifference(
        lacks=missing_features(verified, here), adds=missing_features(here, verified)
    )


def _some(features: tuple[str, ...]) -> str:
    more = len(features) - _MOST_TOLD
    names = ", ".join(features[:_MOST_TOLD])
    return f"{names} and {more} more" if more > 0 else names


def plain(name: str) -> str:
    """A name on one short line, without what would command a terminal."""
    printable = "".join(letter for letter in name if letter.isprintable())
    return " ".join(printable.split())[:_MAX_NAME].strip()
