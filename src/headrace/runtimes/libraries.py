"""Libraries of runtimes: missing packages, framework conflicts, and errors as one line.

PyTorch's build for CUDA includes the compiler Triton, whose LLVM registers the same options as the
one in TensorFlow. LLVM then aborts the process: "inconsistency in registered CommandLine options".

Library messages begin with the source location of the error and may end with native stack traces.
Both are removed. Messages that are too long are cut in the middle, because the end usually holds
the remedy.
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
"""Display names of the packages of which a process imports at most one."""


def missing_library(runtime: Runtime) -> str:
    """Return the first package that `runtime` needs and that is not installed; empty if none is.

    A runtime without `libraries` needs none.
    """
    required: tuple[str, ...] = getattr(runtime, "libraries", ())
    return next((name for name in required if not _is_installed(name)), "")


def how_to_install(runtime: Runtime) -> str:
    """Return the install command that makes `runtime` usable."""
    extra = getattr(runtime, "extra", "")
    return f"pip install 'headrace[{extra}]'" if extra else f"install {missing_library(runtime)}"


def framework_of(runtime: Runtime) -> str:
    """Return the package of `FRAMEWORKS` that runs models of `runtime` here; empty for none."""
    libraries: tuple[str, ...] = (
        *getattr(runtime, "libraries", ()),
        *getattr(runtime, "optional_libraries", ()),
    )
    return next((name for name in libraries if name in FRAMEWORKS and _is_installed(name)), "")


def other_framework(package: str) -> str:
    """Return the imported framework that prevents importing `package`; empty for none."""
    if package not in FRAMEWORKS:
        return ""
    others = (name for name in FRAMEWORKS if name != package)
    return next((name for name in others if sys.modules.get(name) is not None), "")


def import_package(package: str) -> ModuleType:
    """Import and return a package; after a framework, this process can import no other framework.

    Raises:
        ImportError: It is not installed.
        FailedPreconditionError: This process has imported another framework.
    """
    if package in FRAMEWORKS:
        isolate_frameworks()
    try:
        return importlib.import_module(package)
    except SecondFrameworkError as error:
        raise FailedPreconditionError(str(error)) from error


def isolate_frameworks() -> None:
    """Limit this process to one framework: importing a second one raises ImportError.

    Libraries for which a framework is optional work without it.
    """
    if _APART not in sys.meta_path:
        sys.meta_path.insert(0, _APART)


@contextmanager
def without_frameworks() -> Iterator[None]:
    """Hide frameworks in the calling thread, for importing libraries that do not need them.

    Packages that the process has already imported stay visible.
    """
    isolate_frameworks()
    before, _APART.here.are_hidden = _APART.are_hidden, True
    try:
        yield
    finally:
        _APART.here.are_hidden = before


def _is_installed(package: str) -> bool:
    # `find_spec` of a nested package would import its parent.
    try:
        return find_spec(package.partition(".")[0]) is not None
    except (ImportError, ValueError):  # an unusual entry in `sys.modules`
        return False


class SecondFrameworkError(ImportError):
    """Raised if a second framework is imported into this process."""


class _FrameworkGuard(MetaPathFinder, Loader):
    """Import finder that precedes Python's and refuses to load a second or a hidden framework.

    It still returns specs, so that `find_spec` shows which frameworks are installed.
    """

    def __init__(self) -> None:
        self.here = threading.local()

    @property
    def are_hidden(self) -> bool:
        """Whether the calling thread imports no framework."""
        return getattr(self.here, "are_hidden", False)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec that refuses to load; None leaves the package to other finders."""
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
    """Return a library's message without source paths, signatures and stack traces."""
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
