"""The suites: one question each, asked by `run(context)`."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Final

from bench.context import Context
from bench.results import SuiteResult

NAMES: Final = (
    "mlp",
    "latency",
    "grpc",
    "transformer",
    "start",
    "image",
    "overload",
    "memory",
    *("fleet", "steer"),
    "publish",
    "reports",
    "auth",
    "observe",
    "jobs",
    "ray",
    "streams",
    "worker",
    "scoring",
)


def load(names: tuple[str, ...]) -> Mapping[str, Callable[[Context], SuiteResult]]:
    """The suites of these names, in this order."""
    return {name: import_module(f"bench.suites.{name}").run for name in names}


def question(name: str) -> str:
    """What a suite asks: the first line of its module."""
    return (import_module(f"bench.suites.{name}").__doc__ or name).splitlines()[0]
