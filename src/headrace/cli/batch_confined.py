"""`headrace batch run`, confined as a replica is: what may it read and write, and go on as what?

The control plane starts runs so. A first process, as this user, finds the model and what goes with
it, and becomes a second one, which sees no other file of the home than the model's, and runs it.
"""

# ruff: noqa: PLC0415  # as in other commands

import os
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn
from urllib.parse import urlsplit

import msgspec

from headrace.cli.batch_model import Chosen
from headrace.core import FailedPreconditionError, FeatureSettings
from headrace.core.variables import filled_in, url_filled_in
from headrace.jobs.manifest import OutputFolder
from headrace.jobs.sources.source import is_url, list_files
from headrace.jobs.sources.sql import SQLITE, is_database

if TYPE_CHECKING:
    from headrace.control.home import Home
    from headrace.control.sandbox import Sandbox

_CHOSEN: Final = "chosen.json"
_LOCAL: Final = frozenset({"file", "local"})
_ALL_MAY_ENTER: Final = stat.S_IROTH | stat.S_IXOTH


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a run reads. `folder`: where it lies, here. `files`: which they are.

    `network`: it is elsewhere.
    """

    folder: Path | None = None
    files: tuple[Path, ...] = ()
    network: bool = False


def read_chosen(path: Path) -> Chosen:
    """The model that the first process found."""
    return msgspec.json.decode(path.read_bytes(), type=Chosen)


def inputs_of(source: str, environment: Mapping[str, str] | None = None) -> Inputs:
    """What `--input` means: files here, or something that is reached over the network.

    Raises:
        FailedPreconditionError: A variable that it names is not there.
        InvalidArgumentError: There are no such files.
    """
    is_elsewhere = is_url(source) or is_database(source)
    fill_in = url_filled_in if is_elsewhere else filled_in
    whole = fill_in(source, what="the input", environment=environment)
    if whole.startswith(SQLITE):
        file = Path(whole.removeprefix(SQLITE)).absolute()
        return Inputs(folder=file.parent, files=(file,))
    if is_url(whole):
        parts = urlsplit(whole)
        if parts.scheme not in _LOCAL:
            return Inputs(network=True)
        whole = parts.path
    files = tuple(Path(name).absolute() for name in list_files(whole))
    folder = Path(whole).absolute()
    while has_magic(str(folder)):
        folder = folder.parent
    return Inputs(folder=folder, files=files)


def why_not_another(inputs: Inputs) -> str:
    """Why only this user may read an input, and not one of the run's own; empty if that may."""
    folder = inputs.folder
    for file in inputs.files:
        try:
            inner = [one for one in file.parents if folder and one.is_relative_to(folder)]
            closed = [one for one in inner if not _is_open(one.stat().st_mode, _ALL_MAY_ENTER)]
            if not _is_open(file.stat().st_mode, stat.S_IROTH):
                closed.append(file)
        except OSError as error:
            return f"{file} cannot be looked at: {error.strerror}"
        if closed:
            return f"others may not read {closed[-1]}"
        if is_wal(file):
            return f"{file} is in WAL mode, in which readers write"
    return ""


def is_wal(file: Path) -> bool:
    """Whether it is a database of SQLite's in WAL mode: see its file format, 1.3.3."""
    with file.open("rb") as opened:
        head = opened.read(20)
    return head.startswith(b"SQLite format 3\0") and head[18:20] == b"\2\2"


def _is_open(mode: int, wanted: int) -> bool:
    return mode & wanted == wanted


def go_on_confined(
    chosen: Chosen,
    inputs: Inputs,
    *,
    home: Path,
    run_id: str,
    output: Path,
    workers: int,
    serial: int,
) -> NoReturn:
    """Become the process that runs the model.

    Args:
        serial: Of the user that it is, if this one is root.

    Raises:
        HeadraceError: It cannot be confined so.
        OSError: Its folders cannot be made, or it cannot be started.
    """
    from headrace.control.home import Home
    from headrace.control.job_process import report_name
    from headrace.control.sandbox import Occasion, launched
    from headrace.core.confine import give_all
    from headrace.core.files import make_private_dir
    from headrace.core.processes import python_module

    place = Home(home.resolve())
    sandbox = _sandbox(place)
    own = make_private_dir(place.job_run(run_id))
    told = own / _CHOSEN
    told.write_bytes(msgspec.json.encode(chosen))
    told.chmod(0o644)  # its folder is private
    output = output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    OutputFolder(output).check_own()  # before all in it belongs to another user
    spec = sandbox.spec(
        own=[own, output],
        keep=[*_read_by(chosen, sandbox, place.root), *filter(None, [inputs.folder])],
        network=chosen.network or inputs.network,
        serial=Occasion(serial),
        report=sandbox.report_of(report_name(run_id)),
    )
    spec["attached"] = True
    if spec["uid"] is not None:
        why = _why_not_ours(output, spec["uid"]) or why_not_another(inputs)
        spec["whole"] = [str(output)]
        if why:
            give_all(str(output), os.getuid(), os.getgid())
            message = (
                f"the job would run as user {spec['uid']}, and {why}: let others read the input "
                "(`chmod -R o+rX`), or run headrace as another user than root"
            )
            raise FailedPreconditionError(message)
    processes = spec["limits"]["processes"]
    if processes is not None:
        spec["limits"]["processes"] = processes + 2 * workers
    os.environ["TMPDIR"] = str(own)
    arguments = [word for word in sys.argv[1:] if not word.startswith("--confined=")]
    command = launched(spec, python_module("headrace.cli", *arguments, f"--chosen={told}"))
    sys.stderr.flush()
    os.execv(command[0], command)  # noqa: S606  # what this is for


def _sandbox(place: "Home") -> "Sandbox":
    from functools import cache

    from headrace.control.sandbox import Probe, Sandbox

    return Sandbox(
        hide=(place.root, place.socket_dir()),
        reports=place.records,
        abilities=cache(lambda: Probe().result()),
    )


def _read_by(chosen: Chosen, sandbox: "Sandbox", home: Path) -> list[Path]:
    """What the model reads: its files, and those of the store of its features."""
    from headrace.control.online_stores import OnlineStores
    from headrace.control.sandbox import Occasion, files_of
    from headrace.control.secret_references import resolve_url

    found = files_of(Path(chosen.settings.path))
    features = chosen.settings.features
    if isinstance(features, FeatureSettings):
        # Not closed: whoever closes a store last takes away what readers need beside it.
        store = OnlineStores(home, *sandbox.hide).prepare(
            resolve_url(features.online_store), for_others=sandbox.user(Occasion.JOB) is not None
        )
        found += [] if store is None else [store]
    return found


def _why_not_ours(output: Path, uid: int) -> str:
    """Why a folder cannot belong to the user that writes it; empty if it can.

    Raises:
        FailedPreconditionError: It is a link: what it leads to is not given away.
    """
    if output.is_symlink():
        message = f"the output {output} is a link; name the folder that it leads to"
        raise FailedPreconditionError(message)
    try:
        os.chown(output, uid, uid, follow_symlinks=False)
    except OSError as error:
        return f"{output} cannot be given to user {uid}: {error.strerror}"
    return ""
