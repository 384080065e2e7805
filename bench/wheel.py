"""Which build of Headrace is measured: the wheel of this checkout, as its users get it."""

import os
import sys
from pathlib import Path
from typing import Final

from scripts import compiled

COMPILED: Final = "compiled wheel"
INTERPRETED: Final = "interpreted"


def use() -> str:
    """Let every process that is started from now on run the compiled wheel; how it runs.

    Without a C compiler it is the checkout's own files, which are slower: that is told.
    """
    try:
        site = compiled.ensure()
    except compiled.BuildError as error:
        print(f"note  Headrace's own modules are interpreted: {error}", file=sys.stderr, flush=True)
        return INTERPRETED
    os.environ["PYTHONPATH"] = str(site)
    return COMPILED


def size_bytes() -> int:
    """What the wheel takes on the disk, unpacked and byte-compiled; 0 if there is none."""
    return sum(file.stat().st_blocks * 512 for file in _files(compiled.SITE))


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
