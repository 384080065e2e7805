"""What does an optimized model say of itself? Its manifest, and every file that lies beside it."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from headrace.advise.inventory_model import Details, Format, Problem, Trouble, problem
from headrace.core import UnsupportedModelError
from headrace.runtimes.optimized_file import FILE_NAME, OptimizedManifest, decode_manifest, path_in
from headrace.runtimes.processor import plain

_MOST_FILES: Final = 1000
_MOST_DEPTH: Final = 16

Examine = Callable[[Path], tuple[Format, Details]]


def optimized_details(folder: Path, examine: Examine) -> Details:
    """Inputs and outputs of the first member, weights and problems of all files.

    What lies there unused counts too: whoever takes the folder elsewhere may load it.
    """
    members: dict[Path, Details] = {}
    problems: list[Problem] = []
    for file in _files(folder, 0):
        kind, details = examine(file)
        if kind is not Format.UNKNOWN or details.problems:
            members[file] = details
            name = file.relative_to(folder).as_posix()
            problems += [
                replace(one, message=f"'{name}' {one.message}") for one in details.problems
            ]
    try:
        manifest = decode_manifest(folder / FILE_NAME)
        first = members.get(path_in(folder, manifest.members[0].path), Details())
        for member in manifest.members:
            path_in(folder, member.path)
    except (UnsupportedModelError, IndexError) as error:
        message = f"cannot be served: {str(error)[:300] or 'it has no member'}"
        problems.append(problem(Trouble.BROKEN, message))
        return Details(producer="headrace", problems=tuple(problems))
    weights: Counter[str] = Counter()
    for details in members.values():
        weights.update(details.weights)
    return Details(
        inputs=first.inputs,
        outputs=first.outputs,
        opset=first.opset,
        producer="headrace",
        weights=dict(weights),
        quantised=any(details.is_quantised for details in members.values()),
        notes=_notes(manifest),
        problems=tuple(problems),
    )


def _notes(manifest: OptimizedManifest) -> dict[str, str]:
    return {
        "engines": ", ".join(dict.fromkeys(plain(one.runtime) for one in manifest.members)),
        "verified on": plain(manifest.processor.name),
        "on another processor": manifest.on_other_processor.value,
    }


def _files(folder: Path, depth: int) -> Iterator[Path]:
    """Regular files, a bounded number of them; links are not followed."""
    if depth > _MOST_DEPTH:
        return
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)[:_MOST_FILES]
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            yield from _files(Path(entry.path), depth + 1)
        elif entry.is_file(follow_symlinks=False) and entry.name != FILE_NAME:
            yield Path(entry.path)
