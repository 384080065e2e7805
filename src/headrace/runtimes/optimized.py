"""Run what the optimizer made: a directory whose manifest names the engine and its options."""

import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec

from headrace.core import FailedPreconditionError, UnsupportedModelError
from headrace.core.devices import ON_CPU, Device, DeviceUse
from headrace.runtimes.base import LoadOptions, Model
from headrace.runtimes.onnx_providers import as_device
from headrace.runtimes.optimized_file import path_in, read_manifest, refuse
from headrace.runtimes.optimized_manifest import (
    FILE_NAME,
    Member,
    OptimizedManifest,
    OtherProcessor,
    Processor,
)
from headrace.runtimes.optimized_model import LoadedMember, OptimizedModel
from headrace.runtimes.optimized_policy import may_be_loaded, problem_of, settle
from headrace.runtimes.plugins import load_model
from headrace.runtimes.processor import change, this_processor

_log = logging.getLogger(__name__)


class OptimizedRuntime:
    """Loads a directory with `optimized.json`."""

    name = "optimized"
    runs_code = False
    has_manifest = True

    def recognises(self, path: Path) -> bool:
        """Whether it is a directory with `optimized.json`."""
        return path.is_dir() and (path / FILE_NAME).is_file()

    def load(self, path: Path, options: LoadOptions) -> Model:
        """Load each member, and verify the model where the processor is another one."""
        return open_optimized(path, options, here=this_processor())


def open_optimized(directory: Path, options: LoadOptions, *, here: Processor) -> OptimizedModel:
    """The model of a manifest, on the processor that it was verified on or as its policy says.

    Args:
        here: The processor that it is to run on.

    Raises:
        UnsupportedModelError: The manifest, or a member, is not what it should be.
        FailedPreconditionError: It may not, or does not, run here as it was verified.
    """
    manifest = _read(directory, options)
    other = change(manifest.processor, here)
    if other:
        may_be_loaded(directory, manifest, other)
    members = _load_members(directory, manifest.members, options)
    with ExitStack() as opened:
        for member in members:
            opened.callback(member.model.close)
        text = settle(directory, manifest, members, other)
        use = DeviceUse(asked=options.device, used=ON_CPU, optimized=text)
        model = _one(directory, members, use)
        opened.pop_all()
    unverified = other and manifest.on_other_processor is OtherProcessor.ALLOW
    _log.log(logging.WARNING if unverified else logging.INFO, "%s: %s", directory.name, text)
    return model


def prove(directory: Path) -> None:
    """Ask each member what the model was verified with, whichever processor this is.

    Raises:
        UnsupportedModelError: The manifest, or a member, is not what it should be.
        FailedPreconditionError: The answers are not those that were recorded.
    """
    options = LoadOptions(device=Device.CPU)
    manifest = _read(directory, options)
    members = _load_members(directory, manifest.members, options)
    with ExitStack() as opened:
        for member in members:
            opened.callback(member.model.close)
        _one(directory, members, DeviceUse(asked=Device.CPU, used=ON_CPU))
        if problem := problem_of(directory, manifest, members):
            raise FailedPreconditionError(f"{directory}: {problem}")


def _read(directory: Path, options: LoadOptions) -> OptimizedManifest:
    if as_device(options.device) not in {Device.AUTO, Device.CPU}:
        msg = f"device '{options.device}' was asked for, and {directory} was optimized for the CPU"
        raise FailedPreconditionError(f"{msg}; leave `device` out")
    return read_manifest(directory)


def _one(directory: Path, members: Sequence[LoadedMember], use: DeviceUse) -> OptimizedModel:
    try:
        return OptimizedModel(members, use)
    except UnsupportedModelError as error:
        raise refuse(directory, f"is not one model: {error}") from error


def _load_members(
    directory: Path, members: Sequence[Member], options: LoadOptions
) -> list[LoadedMember]:
    with ExitStack() as opened:
        loaded = []
        for member in members:
            own = member_options(member, options)
            model = load_model(path_in(directory, member.path), member.runtime, own)
            opened.callback(model.close)
            loaded.append(
                LoadedMember(
                    name=member.path,
                    model=model,
                    up_to_rows=member.up_to_rows,
                    threads=own.intra_op_threads,
                )
            )
        opened.pop_all()
    return loaded


def member_options(member: Member, options: LoadOptions) -> LoadOptions:
    """How a member is loaded: on the CPU, as tuned, with threads as pinned, else as wished."""
    pinned, wished = options.tuning.intra_op_threads, member.tuning.intra_op_threads
    threads = pinned or (wished and min(wished, len(os.sched_getaffinity(0))))
    return LoadOptions(
        intra_op_threads=threads or options.intra_op_threads,
        device=Device.CPU,
        tuning=msgspec.structs.replace(member.tuning, intra_op_threads=threads),
    )
