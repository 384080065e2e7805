from pathlib import Path

import pytest

from headrace.control.scaling.advice import machine_budget
from headrace.core.spec.scale import BudgetSpec
from headrace.engine import usable_cores

MEMINFO = "MemTotal:        8000000 kB\nMemFree:  1 kB\n"


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    (tmp_path / "meminfo").write_text(MEMINFO)
    return tmp_path


def budget(machine: Path, wanted: BudgetSpec | None = None) -> BudgetSpec:
    return machine_budget(wanted, cgroup=machine, meminfo=machine / "meminfo")


def test_a_machine_without_limits_has_what_it_has(machine: Path) -> None:
    (machine / "cpu.max").write_text("max 100000\n")
    (machine / "memory.max").write_text("max\n")

    found = budget(machine)

    assert found.cpus == float(usable_cores())
    assert found.memory_bytes == int(8_000_000 * 1024 * 0.9)


def test_a_container_has_no_more_than_its_limits(machine: Path) -> None:
    (machine / "cpu.max").write_text("50000 100000\n")
    (machine / "memory.max").write_text("1000000000\n")

    assert budget(machine) == BudgetSpec(cpus=0.5, memory_bytes=900_000_000)


@pytest.mark.parametrize("text", ["", "0 0\n", "what\n"])
def test_limits_that_say_nothing_are_none(machine: Path, text: str) -> None:
    (machine / "cpu.max").write_text(text)

    assert budget(machine).cpus == float(usable_cores())


def test_what_is_wanted_wins(machine: Path) -> None:
    wanted = BudgetSpec(cpus=64.0, memory_bytes=1 << 40)

    assert budget(machine, wanted) == wanted


def test_memory_that_nobody_tells_is_not_bounded(machine: Path) -> None:
    (machine / "meminfo").write_text("")

    assert budget(machine).memory_bytes is None


def test_this_machine_has_cores_and_memory() -> None:
    found = machine_budget()

    assert found.cpus is not None
    assert found.memory_bytes is not None
    assert found.memory_bytes > 100_000_000
