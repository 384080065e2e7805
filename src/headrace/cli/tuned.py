"""`--tuned` of `apply` and `up`: the spec with what it leaves open filled in from profiles."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headrace.cli.model_store import ModelStore
from headrace.cli.profile_files import read_profiles
from headrace.core import FailedPreconditionError
from headrace.core.spec import is_model_path
from headrace.engine import usable_cores
from headrace.optimize.profiling.document import Filled, Machine, fill, fitting, model_of
from headrace.registry import is_repository, read_content
from headrace.runtimes.processor import this_processor


def tuned(
    document: Mapping[str, Any], *, home: Path, store: ModelStore, is_here: bool
) -> tuple[dict[str, Any], list[str]]:
    """The document, and a line for each setting that a profile decided.

    Args:
        home: Where the profiles are.
        store: Knows the models that the document names by reference.
        is_here: Whether it will be served on this machine.

    Raises:
        FailedPreconditionError: A model has no profile that holds here.
    """
    cores = usable_cores()
    machine = Machine(processor=this_processor(), cores=cores) if is_here else None
    endpoints: list[dict[str, Any]] = []
    lines: list[str] = []
    for entry in document.get("endpoints", []):
        model = model_of(entry)
        if model is None:
            endpoints.append(dict(entry))
            lines.append(f"{entry.get('name')}: somebody else's server, left as it is")
            continue
        profiles = read_profiles(home, _digest(model, store))
        command = f"headrace profile {model}"
        profile = fitting(profiles, model=model, machine=machine, command=command)
        changed, filled = fill(entry, profile, cores=cores if is_here else None)
        endpoints.append(changed)
        name = str(entry.get("name"))
        lines.append(
            f"{name}: {len(filled)} settings by the profile of {profile.at} of {model} "
            f"({profile.cores} cores of {profile.processor.name})"
        )
        lines += [_line(one) for one in filled]
        if not is_here:
            lines.append(f"  whether the machine that serves {name} is alike is not known here")
    return {**document, "endpoints": endpoints}, lines


def _line(one: Filled) -> str:
    why = f": {one.why}" if one.why else ""
    return f"  {one.place} = {one.value}{why}"


def _digest(model: str, store: ModelStore) -> str:
    if not is_model_path(model):
        return str(store.get(model).digest)
    path = Path(model)
    if is_repository(path):
        msg = (
            f"{path} is a repository of several models, which --tuned cannot tell apart; push its "
            "models with `headrace models push`, and name each"
        )
        raise FailedPreconditionError(msg)
    return str(read_content(path).digest)
