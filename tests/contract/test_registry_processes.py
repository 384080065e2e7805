"""Two pushes at once lose nothing: with real threads and real processes on one home."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from headrace.registry import Registry
from headrace.runtimes import inspect_model
from headrace.testing import models

PUSHES = 6
SCRIPT = """
import sys
from pathlib import Path

from headrace.registry import Registry
from headrace.runtimes import inspect_model

home, *files = map(Path, sys.argv[1:])
registry = Registry(home, inspect_model)
for file in files:
    registry.push("m", file)
"""


def make_models(directory: Path, seeds: range) -> list[Path]:
    paths = [directory / f"{seed}.onnx" for seed in seeds]
    for seed, path in zip(seeds, paths, strict=True):
        path.write_bytes(models.matmul(seed=seed))
    return paths


def check_nothing_is_lost(home: Path, pushed: int) -> None:
    registry = Registry(home)
    versions = registry.list("m")
    assert [version.version for version in versions] == [str(n + 1) for n in range(pushed)]
    assert len({version.digest for version in versions}) == pushed
    for version in versions:
        registry.verify(version)
    assert list((home / "artifacts" / "tmp").iterdir()) == []


@pytest.mark.slow
def test_pushes_of_several_processes_get_different_numbers(tmp_path: Path) -> None:
    home = tmp_path / "home"
    batches = [make_models(tmp_path, range(k * PUSHES, (k + 1) * PUSHES)) for k in range(3)]
    running = [
        subprocess.Popen([sys.executable, "-c", SCRIPT, str(home), *map(str, batch)])  # noqa: S603  # our own script
        for batch in batches
    ]
    try:
        assert [process.wait(timeout=60) for process in running] == [0, 0, 0]
    finally:
        for process in running:
            process.kill()

    check_nothing_is_lost(home, 3 * PUSHES)


def test_pushes_of_several_threads_get_different_numbers(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "home", inspect_model)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda path: registry.push("m", path), make_models(tmp_path, range(8))))

    check_nothing_is_lost(tmp_path / "home", 8)


def test_one_content_pushed_by_many_at_once_is_one_version(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "home", inspect_model)
    (path,) = make_models(tmp_path, range(1))
    with ThreadPoolExecutor(4) as pool:
        versions = list(pool.map(lambda _: registry.push("m", path), range(8)))

    assert {version.reference for version in versions} == {"m:1"}
    check_nothing_is_lost(tmp_path / "home", 1)
