"""The lock files are held against pyproject.toml without a network."""

from pathlib import Path

from scripts.check_locks import LOCKS, ROOT, mistakes

PIN = "    --hash=sha256:" + "0" * 64
PYPROJECT = """
[project]
dependencies = ["numpy>=1.26"]
[dependency-groups]
dev = ["pytest>=9"]
docs = []
bench = []
clients = []
build = []
demo = []
mutants = []
"""


def locks(**changed: str) -> dict[str, str]:
    base = f"numpy==2.4.6 \\\n{PIN}\n"
    dev = f"{base}pytest==9.2.0 \\\n{PIN}\n"
    return {
        "base": base,
        "dev": dev,
        "demo": base,
        "bench": "",
        "clients": "",
        "build": "",
        "mutants": "",
    } | changed


def test_the_locks_of_this_repository_fit_its_pyproject() -> None:
    texts = {name: Path(ROOT, "requirements", f"{name}.txt").read_text() for name in LOCKS}

    assert list(mistakes((ROOT / "pyproject.toml").read_text(), texts)) == []


def test_locks_that_fit_have_no_mistakes() -> None:
    assert list(mistakes(PYPROJECT, locks())) == []


def test_a_requirement_without_a_pin_is_named() -> None:
    found = list(mistakes(PYPROJECT.replace('"pytest>=9"', '"pytest>=9", "mypy"'), locks()))

    assert found == ["dev.txt has no pin for mypy"]


def test_a_pin_that_the_requirement_forbids_is_named() -> None:
    found = list(mistakes(PYPROJECT.replace("pytest>=9", "pytest>=10"), locks()))

    assert found == ["dev.txt pins pytest 9.2.0, which pytest>=10 forbids"]


def test_a_pin_without_a_hash_is_named() -> None:
    found = list(mistakes(PYPROJECT, locks(bench="rich==15.0.0\n")))

    assert found == ["bench.txt has no hash for rich==15.0.0"]


def test_locks_that_disagree_on_a_version_are_named() -> None:
    found = list(mistakes(PYPROJECT, locks(bench=f"numpy==2.0.0 \\\n{PIN}\n")))

    assert found == ["bench.txt and dev.txt disagree on numpy"]


def test_a_download_address_is_named() -> None:
    found = list(mistakes(PYPROJECT, locks(bench="--index-url https://example.org/simple\n")))

    assert found == ["bench.txt names a download address"]
