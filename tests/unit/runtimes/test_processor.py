from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.runtimes.optimized.file import Processor
from headrace.runtimes.optimized.processor import (
    FEATURES,
    ProcessorDifference,
    change,
    missing_features,
    parse_cpuinfo,
    this_processor,
)

INTEL = """\
processor	: 0
vendor_id	: GenuineIntel
cpu family	: 6
model name	: Intel(R) Xeon(R) Platinum 8488C
flags		: fpu vme sse4_2 avx f16c fma avx2 avx512f avx512dq avx512bw avx512vl avx_vnni \
avx512_bf16 avx512_vnni amx_bf16 avx512_fp16 amx_tile amx_int8
bugs		: spectre_v1
vmx flags	: vnmi preemption_timer

processor	: 1
model name	: Intel(R) Xeon(R) Platinum 8488C
flags		: fpu vme sse4_2 avx f16c fma avx2 avx512f avx512dq avx512bw avx512vl avx_vnni \
avx512_bf16 avx512_vnni amx_bf16 avx512_fp16 amx_tile amx_int8
"""
AMD = """\
processor	: 0
vendor_id	: AuthenticAMD
model name	: AMD Ryzen 7 3700X 8-Core Processor
flags		: fpu vme de pse sse4a avx f16c fma avx2 rdseed sha_ni
"""
GRAVITON = """\
processor	: 0
BogoMIPS	: 2100.00
Features	: fp asimd evtstrm aes sha1 crc32 atomics fphp asimdhp cpuid asimddp sve i8mm bf16
CPU implementer	: 0x41
CPU architecture: 8
CPU variant	: 0x1
CPU part	: 0xd40
CPU revision	: 1
"""
BIG_LITTLE = """\
processor	: 0
Features	: fp asimd asimddp
CPU implementer	: 0x41
CPU part	: 0xd05

processor	: 4
Features	: fp asimd asimddp i8mm bf16 sve
CPU implementer	: 0x41
CPU part	: 0xd47
"""
BARE_VM = """\
processor	: 0
vendor_id	: GenuineIntel
model name	: QEMU Virtual CPU version 2.5+
"""


def test_an_intel_processor_has_its_name_and_features() -> None:
    found = parse_cpuinfo(INTEL)

    assert found.name == "Intel(R) Xeon(R) Platinum 8488C"
    assert found.features == (
        "avx",
        "f16c",
        "fma",
        "avx2",
        "avx512f",
        "avx512dq",
        "avx512bw",
        "avx512vl",
        "avx512_vnni",
        "avx_vnni",
        "avx512_bf16",
        "avx512_fp16",
        "amx_tile",
        "amx_int8",
        "amx_bf16",
    )


def test_an_amd_processor_without_avx512_has_none_of_it() -> None:
    found = parse_cpuinfo(AMD)

    assert found == Processor(
        name="AMD Ryzen 7 3700X 8-Core Processor", features=("avx", "f16c", "fma", "avx2")
    )


def test_an_arm_processor_is_named_by_maker_and_part() -> None:
    found = parse_cpuinfo(GRAVITON)

    assert found.name == "Arm 0xd40"
    assert found.features == ("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve")


def test_features_count_that_all_cores_have() -> None:
    assert parse_cpuinfo(BIG_LITTLE).features == ("asimd", "asimddp")


@pytest.mark.parametrize("text", [BARE_VM, "", ":\n::\n", "flags\n", "\0\x1b[31m\n" * 50])
def test_nothing_is_made_up_where_nothing_is_told(text: str) -> None:
    assert parse_cpuinfo(text).features == ()


def test_a_hostile_name_is_made_harmless() -> None:
    text = f"model name : {'x' * 10_000}\n"
    assert len(parse_cpuinfo(text).name) <= 100
    assert parse_cpuinfo("model name : \x1b[31mred\x07  one\n").name == "[31mred one"


@given(st.text(max_size=400))
def test_any_text_is_read(text: str) -> None:
    found = parse_cpuinfo(f"model name: {text}\nflags: {text}")

    assert set(found.features) <= set(FEATURES)
    assert found.name.isprintable()


def test_what_cannot_be_read_leaves_the_features_open(tmp_path: Path) -> None:
    nowhere = this_processor(tmp_path / "cpuinfo")

    assert nowhere.name
    assert nowhere.features == ()


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_bytes(AMD.encode() + b"\xff\xfe: \x80\n")

    assert this_processor(path) == parse_cpuinfo(AMD)


def test_the_same_features_under_another_name_are_no_change() -> None:
    here = parse_cpuinfo(INTEL)
    other = Processor(name="other", features=tuple(reversed(here.features)))

    assert not change(here, other)


def test_what_is_missing_and_what_is_more_are_told() -> None:
    intel, amd = parse_cpuinfo(INTEL), parse_cpuinfo(AMD)

    assert "avx512_vnni" in missing_features(intel, amd)
    assert missing_features(amd, intel) == ()
    assert change(amd, intel)
    assert "which additionally has amx_bf16, amx_int8" in str(change(amd, intel))
    assert "which lacks amx_bf16" in str(change(intel, amd))
    both = ProcessorDifference(lacks=("avx512_vnni",), adds=("amx_int8",))
    assert str(both) == "which lacks avx512_vnni and which additionally has amx_int8"


def test_features_that_are_not_known_are_never_the_same() -> None:
    bare, intel = parse_cpuinfo(BARE_VM), parse_cpuinfo(INTEL)

    for one, other in ((bare, intel), (intel, bare), (bare, bare)):
        assert change(one, other) == ProcessorDifference(is_unknown=True)
    assert str(change(bare, bare)) == "whose features may differ"


@given(st.sets(st.sampled_from(FEATURES), min_size=1), st.sets(st.sampled_from(FEATURES)))
def test_a_change_is_what_one_has_and_the_other_has_not(ours: set[str], theirs: set[str]) -> None:
    one, other = (Processor(name="", features=tuple(which)) for which in (ours, theirs))
    found = change(one, other)

    if theirs:
        assert set(found.lacks) == ours - theirs
        assert set(found.adds) == theirs - ours
        assert bool(found) is (ours != theirs)
    else:
        assert found.is_unknown
