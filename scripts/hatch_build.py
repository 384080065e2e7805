"""Hatchling hook that compiles the modules of the request path when a wheel is built.

mypyc compiles typed Python to C; each module also stays in the wheel as source, for tracebacks and
readers. C files and objects go to `build/`, nothing next to the sources.
"""

import os
import shutil
import sys
from pathlib import Path
from typing import Any, Final

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from mypyc.build import mypycify
from setuptools import Distribution
from setuptools.command.build_ext import build_ext

PACKAGE: Final = Path("src/headrace")
NAME: Final = "headrace"
"""Of the library that holds the code of all of them: `headrace__mypyc`."""


class CompileHook(BuildHookInterface[Any]):
    """Adds shared libraries to the wheel, and the tag of this Python and platform."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before the wheel is written.

        Raises:
            SystemExit: mypy finds a mistake, or the C compiler fails.
        """
        if version == "editable":
            return  # a checkout runs its own files
        built = Path(self.root, "build", "compiled")
        shutil.rmtree(built, ignore_errors=True)
        libraries = compiled(Path(self.root), self.config["modules"], built)
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        build_data["force_include"] |= libraries


def compiled(root: Path, modules: list[str], into: Path) -> dict[str, str]:
    """Compile `modules` of the package; where each shared library is, and its place in the wheel.

    Raises:
        SystemExit: mypy finds a mistake, or the C compiler fails.
    """
    os.chdir(root)
    paths = [str(PACKAGE / f"{module}.py") for module in modules]
    # An import that is not installed here, or has no types, is no mistake of what is compiled.
    extensions = mypycify(
        ["--follow-imports=silent", "--no-warn-unused-ignores", "--ignore-missing-imports", *paths],
        group_name=NAME,
        target_dir=str(into / "c"),
        opt_level="3",
        debug_level="0",
    )
    if sys.platform == "linux":
        for extension in extensions:  # calls into a shared libpython then go there directly
            extension.extra_compile_args.append("-fno-plt")
    distribution = Distribution({"name": NAME, "ext_modules": extensions})
    command = build_ext(distribution)
    command.build_lib, command.build_temp = str(into / "lib"), str(into / "o")
    command.ensure_finalized()
    command.run()
    libraries = into / "lib"
    return {
        str(file): str(file.relative_to(libraries))
        for file in sorted(libraries.rglob("*"))
        if file.is_file()
    }
