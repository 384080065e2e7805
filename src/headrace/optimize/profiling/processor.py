"""Which processor is this, as far as the speed of models goes?"""

from pathlib import Path
from typing import Final

from headrace.runtimes.optimized_manifest import Processor

_CPUINFO: Final = Path("/proc/cpuinfo")
_MATTER: Final = frozenset(
    {
        *("sse4_1", "sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw"),
        *("avx512vl", "avx512dq", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
        *("amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "asimdhp", "bf16", "i8mm", "sve"),
    }
)
"""Features that kernels of matrix products are chosen by, by Linux's names."""


def this_processor() -> Processor:
    """The one that this process runs on."""
    return processor_in(_CPUINFO.read_text())


def processor_in(cpuinfo: str) -> Processor:
    """The first processor in the text of /proc/cpuinfo."""
    told: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        told.setdefault(name.strip().lower(), value.strip())
    features = told.get("flags") or told.get("features") or ""
    return Processor(
        name=" ".join((told.get("model name") or told.get("cpu part") or "unknown").split()),
        features=tuple(sorted(_MATTER & set(features.split()))),
    )
