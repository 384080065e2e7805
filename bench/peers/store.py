"""What was measured of each peer, stored as it comes: a crash loses one step of one peer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from bench.peers.rows import Row


class Part(msgspec.Struct, kw_only=True):
    """All of one peer; of Headrace alone under its own name.

    `skipped` says why there is nothing. `done`: steps that need not be repeated. `failures`: by
    step. `batches`: its largest batch by model, where that was chosen by trying. `versions` are
    those of its requirements file, `seconds` what it took in all, `step_s` what each step did.
    """

    name: str
    title: str
    is_quick: bool
    skipped: str = ""
    versions: dict[str, str] = {}
    batches: dict[str, int] = {}
    done: list[str] = []
    failures: dict[str, str] = {}
    rows: list[Row] = []
    seconds: float = 0.0
    step_s: dict[str, float] = {}


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A whole run: `machine` as `bench.machine.describe` tells it, and a part for each peer.

    `build`: which of Headrace's, as `bench.wheel` calls it.
    """

    started: str
    is_quick: bool
    machine: dict[str, Any]
    build: str
    placement: str
    load_tool: str
    load_average: dict[str, float]
    targets: list[dict[str, Any]]
    parts: list[Part]


def path_of(folder: Path, name: str) -> Path:
    """Where a part lies."""
    return folder / "parts" / f"{name}.json"


def keep(part: Part, folder: Path) -> None:
    """Write a part; whoever reads meanwhile sees the old or the new one."""
    path = path_of(folder, part.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_bytes(_pretty(part))
    unfinished.rename(path)


def resume(folder: Path, fresh: Part) -> Part:
    """The part of an earlier run that was as long, or `fresh`."""
    path = path_of(folder, fresh.name)
    if not path.exists():
        return fresh
    try:
        part = msgspec.json.decode(path.read_bytes(), type=Part)
    except msgspec.DecodeError:  # of another version of this program
        return fresh
    if part.is_quick != fresh.is_quick or part.skipped:
        return fresh
    part.failures = {}
    return part


def read_run(path: Path) -> Run:
    """A stored run.

    Raises:
        OSError: There is none.
        msgspec.DecodeError: It is of another version of this program.
    """
    return msgspec.json.decode(path.read_bytes(), type=Run)


def write_run(run: Run, folder: Path, stamp: str) -> Path:
    """Under its time, and as `latest.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stamp}.json"
    for target in (path, folder / "latest.json"):
        target.write_bytes(_pretty(run))
    return path


def by_name(parts: Sequence[Part]) -> Mapping[str, Part]:
    """Parts by the peer's name, without those that were skipped."""
    return {part.name: part for part in parts if not part.skipped}


def _pretty(document: Part | Run) -> bytes:
    return msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"
