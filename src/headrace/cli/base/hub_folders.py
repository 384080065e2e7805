"""Hugging Face folders as model versions: the files that serving needs, weights exported to ONNX.

A folder of the hub often holds the same weights in several formats. One of them is stored.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from headrace.cli.base.management import Document
from headrace.cli.base.model_store import ModelStore
from headrace.cli.base.offline import Pushed
from headrace.cli.base.output import progress, say
from headrace.control.local.sandbox import Sandbox
from headrace.control.sandboxed.convert import converted_model
from headrace.core import Digest, InvalidArgumentError, NotFoundError, UnsupportedModelError
from headrace.optimize.convert.process import ConvertRequest
from headrace.registry import read_content
from headrace.runtimes.huggingface import ONNX_FILES, HubFolder, is_hub_folder

RUNTIME: Final = "huggingface"
_CONVERTED_FROM: Final = "converted_from"


def is_pushed_hub_folder(pushed: Pushed) -> bool:
    """Whether a model is a Hugging Face folder that is served as one."""
    return pushed.runtime in {"", RUNTIME} and is_hub_folder(pushed.path)


def push_model(
    store: ModelStore, name: str, pushed: Pushed, home: Path, *, must_export: bool = False
) -> Document:
    """Store a model as the next version of `name`; a Hugging Face folder is prepared first.

    Weights are exported to ONNX in a sandbox, and the export is compared with the original.
    Weights that cannot be exported are stored as they are, and PyTorch runs them. A folder that
    was exported before is not exported again.

    Args:
        home: Directory that is hidden from the export.
        must_export: Whether weights that cannot be exported are refused.

    Raises:
        UnsupportedModelError: The folder is not supported, or `must_export` and it cannot be
            exported.
        CodeNotAllowedError: The weights are a pickle; nothing was read.
        FailedPreconditionError: A library is missing; the message says how to install it.
    """
    if not is_pushed_hub_folder(pushed):
        return store.push(name, pushed)
    with _reduced(pushed) as (reduced, folder):
        if folder.is_onnx:
            return store.push(name, reduced)
        digest = read_content(reduced.path).digest
        for version in reversed(_versions(store, name)):
            if version["metadata"].get(_CONVERTED_FROM) == digest:
                return version
        exported = _exported(reduced, folder, home, digest=digest, must_export=must_export)
        return store.push(name, exported)


@contextmanager
def served_path(pushed: Pushed, home: Path) -> Iterator[Path]:
    """Yield the path from which a model is served without being stored.

    Raises:
        HeadraceError: As in `push_model`.
    """
    if not is_pushed_hub_folder(pushed) or HubFolder.read(pushed.path).is_onnx:
        yield pushed.path
        return
    with _reduced(pushed) as (reduced, folder):
        digest = read_content(reduced.path).digest
        yield _exported(reduced, folder, home, digest=digest).path


def _exported(
    reduced: Pushed, folder: HubFolder, home: Path, *, digest: str, must_export: bool = False
) -> Pushed:
    """Replace the weights in the folder by their export; if it fails, they stay."""
    request = ConvertRequest(path=str(reduced.path), runtime=RUNTIME, allow_code=reduced.allow_code)
    try:
        with (
            progress(f"exporting {reduced.source} to ONNX and comparing"),
            converted_model(Sandbox.of_home(home), request, filename=ONNX_FILES[0]) as (
                model,
                report,
            ),
        ):
            for file in list(folder.weights()):
                (reduced.path / file).unlink()
            shutil.move(model, reduced.path / model.name)
    except UnsupportedModelError as error:
        if must_export:
            raise
        reason = str(error).replace(str(reduced.path), reduced.source)
        say(f"{reduced.source} is not exported to ONNX, so PyTorch runs it: {reason}")
        return reduced
    say(
        f"{reduced.source} is exported to ONNX by {report.converter}: on "
        f"{report.differences.rows} generated rows answers are within the tolerance of "
        f"{report.tolerance:g}"
    )
    metadata = report.metadata(digest=Digest(digest), runtime=RUNTIME, filename=folder.model_file)
    return replace(reduced, metadata={**reduced.metadata, **metadata})


@contextmanager
def _reduced(pushed: Pushed) -> Iterator[tuple[Pushed, HubFolder]]:
    """Yield the folder with only its needed files, as links to the same content where possible.

    Raises:
        InvalidArgumentError: A file is a link that leaves the folder and the cache that it is in.
    """
    path = pushed.path.absolute()
    source = HubFolder.read(path)
    folder = path.resolve()
    # In the cache of the hub's client, `snapshots/REVISION` consists of links into `blobs`.
    blobs = [folder.parent.parent / "blobs"] if folder.parent.name == "snapshots" else []
    with tempfile.TemporaryDirectory(prefix="headrace-hub-") as directory:
        target = Path(directory) / folder.name
        for file in source.files():
            original, copy = (path / file).resolve(), target / file
            if not any(original.is_relative_to(root) for root in (folder, *blobs)):
                msg = f"{path / file}: the link leaves the directory; put the file itself there"
                raise InvalidArgumentError(msg)
            copy.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(original, copy)
            except OSError:
                shutil.copyfile(original, copy)
        reduced = replace(pushed, path=target, source=pushed.source or str(path))
        yield reduced, HubFolder.read(target)


def _versions(store: ModelStore, name: str) -> list[Document]:
    try:
        versions: list[Document] = store.list(name)["models"]
    except NotFoundError:
        return []
    return versions
