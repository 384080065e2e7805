"""Which libraries does a runtime need, and are they here? Looked up, never imported."""

from importlib.util import find_spec

from headrace.runtimes.base import Runtime


def missing_library(runtime: Runtime) -> str:
    """The first package that `runtime` needs and that is not installed; empty if none is.

    A runtime that does not say needs nothing.
    """
    wanted: tuple[str, ...] = getattr(runtime, "libraries", ())
    return next((name for name in wanted if not _is_installed(name)), "")


def how_to_install(runtime: Runtime) -> str:
    """What to type so that `runtime` can be used."""
    extra = getattr(runtime, "extra", "")
    return f"pip install 'headrace[{extra}]'" if extra else f"install {missing_library(runtime)}"


def _is_installed(package: str) -> bool:
    # Of a package inside another one, the outer one would have to be imported.
    try:
        return find_spec(package.partition(".")[0]) is not None
    except (ImportError, ValueError):  # somebody put something odd into `sys.modules`
        return False
