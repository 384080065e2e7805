from headrace.optimize.profiling.processor import processor_in, this_processor

INTEL = """\
processor\t: 0
model name\t: Intel(R) Xeon(R)   Processor
flags\t\t: fpu vme sse4_2 avx2 avx512f amx_int8

processor\t: 1
model name\t: Another
flags\t\t: fpu
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp sve\nCPU part\t: 0xd40\n"


def test_the_first_processor_is_known_by_what_speed_depends_on() -> None:
    found = processor_in(INTEL)

    assert found.name == "Intel(R) Xeon(R) Processor"
    assert found.features == ("amx_int8", "avx2", "avx512f", "sse4_2")


def test_arm_calls_it_features() -> None:
    assert processor_in(ARM).features == ("asimd", "asimddp", "sve")
    assert processor_in(ARM).name == "0xd40"


def test_a_file_that_says_nothing_is_an_unknown_processor() -> None:
    assert processor_in("").name == "unknown"


def test_this_machine_has_one() -> None:
    assert this_processor().name
