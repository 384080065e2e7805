"""Libraries of runtimes: which are missing, and their errors as one line.

PyTorch's build for CUDA brings the compiler Triton, whose LLVM registers the same options as the
one in TensorFlow. LLVM then aborts the process: "inconsistency in registered CommandLine options".

Libraries put where in their source an error arose before what went wrong, and native stack traces
behind it. Both are left out, and of what is too long the middle: the end mostly says what to do.
"""

import importlib
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec, spec_from_loader
from types import ModuleType
from typing import Final

from headrace.core import FailedPreconditionError
from headrace.runtimes.base import Runtime

FRAMEWORKS: Final = {"tensorflow": "TensorFlow", "torch": "PyTorch"}
"""What people call the packages of which a process imports at most one."""


def missing_library(runtime: Runtime) -> str:
    """The first package that `runtime` needs and that is not installed; empty if none is.

    A runtime that does not say needs nothing.
    """
    required: tuple[str, ...] = getattr(runtime, "libraries", ())
    return next((name for name in required if not _is_installed(name)), "")


def how_to_install(runtime: Runtime) -> str:
    """What to type so that `runtime` can be used."""
    extra = getattr(runtime, "extra", "")
    return f"pip install 'headrace[{extra}]'" if extra else f"install {missing_library(runtime)}"


def framework_of(runtime: Runtime) -> str:
    """The package of `FRAMEWORKS` that models of `runtime` are run by here; empty for none."""
    libraries: tuple[str, ...] = (
        *getattr(runtime, "libraries", ()),
        *getattr(runtime, "optional_libraries", ()),
    )
    return next((name for name in libraries if name in FRAMEWORKS and _is_installed(name)), "")


def other_framework(package: str) -> str:
    """The framework in this process that keeps `package` out of it; empty for none."""
    if package not in FRAMEWORKS:
        return ""
    others = (name for name in FRAMEWORKS if name != package)
    return next((name for name in others if sys.modules.get(name) is not None), "")


def import_package(package: str) -> ModuleType:
    """The package of a library; if it is a framework, this process imports no other afterwards.

    Raises:
        ImportError: It is not installed.
        FailedPreconditionError: This process holds another framework.
    """
    if package in FRAMEWORKS:
        keep_frameworks_apart()
    try:
        return importlib.import_module(package)
    except SecondFrameworkError as error:
        raise FailedPreconditionError(str(error)) from error


def keep_frameworks_apart() -> None:
    """Let this process import one framework only: a second one raises ImportError.

    Libraries that use a framework only where they can import it go on without.
    """
    if _APART not in sys.meta_path:
        sys.meta_path.insert(0, _APART)


@contextmanager
def without_frameworks() -> Iterator[None]:
    """Import libraries that import frameworks which they do not need; for the calling thread.

    What the process has imported before stays.
    """
    keep_frameworks_apart()
    before, _APART.here.are_hidden = _APART.are_hidden, True
    try:
        yield
    finally:
        _APART.here.are_hidden = before


def _is_installed(package: str) -> bool:
    # Of a package inside another one, the outer one would have to be imported.
    try:
        return find_spec(package.partition(".")[0]) is not None
    except (ImportError, ValueError):  # somebody put something odd into `sys.modules`
        return False


class SecondFrameworkError(ImportError):
    """A second framework cannot be imported into this process."""


class _FrameworkGuard(MetaPathFinder, Loader):
    """Finds frameworks before Python does, and refuses to load a second or a hidden one.

    They are found all the same, so that `find_spec` tells what is installed.
    """

    def __init__(self) -> None:
        self.here = threading.local()

    @property
    def are_hidden(self) -> bool:
        """Whether the calling thread imports none."""
        return getattr(self.here, "are_hidden", False)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A spec that cannot be loaded; None leaves the package to other finders."""
        if fullname not in FRAMEWORKS or not (self.are_hidden or other_framework(fullname)):
            return None
        if PathFinder.find_spec(fullname, path, target) is None:
            return None
        return spec_from_loader(fullname, self)

    def exec_module(self, module: ModuleType) -> None:
        """Raise ImportError."""
        package = module.__name__
        if other := other_framework(package):
            msg = (
                f"{FRAMEWORKS[package]} cannot be loaded in a process that holds "
                f"{FRAMEWORKS[other]}, as the two can abort the process: serve the models in"
                " separate processes (in a pool: another pool), or convert one to ONNX"
            )
            raise SecondFrameworkError(msg, name=package)
        msg = f"{FRAMEWORKS[package]} is not needed here"
        raise ImportError(msg, name=package)


_APART: Final = _FrameworkGuard()
_MAX_REASON: Final = 400
_KEPT_START: Final = 150
_MAX_READ: Final = 16_384
_CUT: Final = " ... "
_STATUS: Final = re.compile(r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ")
_TRACE: Final = re.compile(r"\s*\n\s*(Stack trace:|Exception raised from ).*", re.DOTALL)
_SOURCE: Final = re.compile(
    r"(?<![\w./+-])(?:\[\d\d:\d\d:\d\d\] )?(?:[\w.+-]*/)*[\w+-]+\.(?:cc|cpp|cu|cuh|h|hpp):\d+:? ?"
)
_NESTED: Final = r"(?:[^()]|\((?:[^()]|\([^()]*\))*\))*"
_SIGNATURE: Final = re.compile(
    rf"(?=[^()]*::)(?:[\w:<>~&*,\[\] ]|\(anonymous namespace\)|operator\(\))+?\({_NESTED}\)"
    r"(?:::<lambda\([^)]*\)>)?(?: const)?(?: ?\[with [^\]]*\])? "
)
_CONDITION: Final = re.compile(r"(?:Check failed: )?\S.{0,200}? was false\. (?=\S)")


def reason_of(error: BaseException) -> str:
    """What went wrong: a library's message without source paths, signatures and stack traces."""
    text = str(error)
    if len(text) > _MAX_READ:
        text = text[: _MAX_READ // 2] + _CUT + text[-_MAX_READ // 2 :]
    text = _STATUS.sub("", _TRACE.sub("", text))
    text = " ".join(text.split())
    for match in reversed(list(_SOURCE.finditer(text))):
        before, rest = text[: match.start()], text[match.end() :]
        signature = _SIGNATURE.match(rest)
        rest = rest[signature.end() :] if signature else rest
        condition = _CONDITION.match(rest)
        text = before + (rest[condition.end() :] if condition else rest)
    text = text.strip() or type(error).__name__
    if len(text) <= _MAX_REASON:
        return text
    return text[:_KEPT_START] + _CUT + text[_KEPT_START + len(_CUT) - _MAX_REASON :]
