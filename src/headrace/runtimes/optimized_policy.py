"""May an optimized model be served on this processor? By its policy, and by asking it again."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, assert_never

from headrace.core import FailedPreconditionError, InvalidArgumentError, check_inputs
from headrace.runtimes.check_file import Asked, read_check
from headrace.runtimes.optimized_check import ask_again
from headrace.runtimes.optimized_file import path_in, refuse
from headrace.runtimes.optimized_manifest import OptimizedManifest, OtherProcessor
from headrace.runtimes.optimized_model import LoadedMember
from headrace.runtimes.processor import Change, plain

CANDIDATE: Final = "candidate"
"""What a manifest's recipe calls the name of what was chosen, `openvino-int8`."""
_DIGEST_SHOWN: Final = 19


def may_be_loaded(directory: Path, manifest: OptimizedManifest, other: Change) -> None:
    """Refuse, before anything is loaded, what its policy refuses on another processor.

    Raises:
        FailedPreconditionError: It does; the message says what to do.
    """
    match manifest.on_other_processor:
        case OtherProcessor.REFUSE:
            raise _not_here(directory, manifest, other, "it is refused, as its policy says")
        case OtherProcessor.VERIFY if manifest.check is None:
            raise _not_here(directory, manifest, other, "it has no check to be verified by again")
        case OtherProcessor.VERIFY | OtherProcessor.ALLOW:
            pass
        case _:
            assert_never(manifest.on_other_processor)


def settle(
    directory: Path,
    manifest: OptimizedManifest,
    members: Sequence[LoadedMember],
    other: Change,
) -> str:
    """What runs the model and where that was verified, in words, once nothing speaks against it.

    Raises:
        UnsupportedModelError: The check is not what it should be.
        FailedPreconditionError: The processor is another one, on which it answers otherwise.
    """
    text = f"{_what(manifest)}, verified on {plain(manifest.processor.name)}"
    if not other:
        return text
    if manifest.on_other_processor is OtherProcessor.ALLOW:
        return f"{text}; not verified on this processor, {other}"
    if problem := problem_of(directory, manifest, members):
        raise _not_here(directory, manifest, other, problem)
    return f"{text}; verified again on this processor, {other}"


def problem_of(
    directory: Path, manifest: OptimizedManifest, members: Sequence[LoadedMember]
) -> str:
    """Why a member does not answer as it did when it was verified; empty if all do.

    Raises:
        UnsupportedModelError: The check is not what it should be.
    """
    if manifest.check is None:
        return ""
    asked = read_check(path_in(directory, manifest.check.path))
    for member in members:
        _check_fits(directory, asked, member)
        outcome = ask_again(member.model, asked, manifest.check)
        if outcome.problem:
            whose = f" of '{member.name}'" if len(members) > 1 else ""
            return f"{outcome.problem}{whose}"
    return ""


def _check_fits(directory: Path, asked: Sequence[Asked], member: LoadedMember) -> None:
    signature = member.model.signature
    outputs = {spec.name for spec in signature.outputs}
    for number, (inputs, answers) in enumerate(asked):
        try:
            rows = check_inputs(member.name, signature, inputs)
        except InvalidArgumentError as error:
            raise refuse(
                directory, f"has a check whose request {number} fits not: {error}"
            ) from None
        if not answers.keys() <= outputs:
            raise refuse(directory, f"has a check with answers that '{member.name}' does not give")
        if signature.batched and any(a.shape[:1] != (rows,) for a in answers.values()):
            raise refuse(directory, f"has a check whose answer {number} is not of {rows} rows")


def _not_here(
    directory: Path, manifest: OptimizedManifest, other: Change, problem: str
) -> FailedPreconditionError:
    source = (
        f" ({plain(manifest.source_digest)[:_DIGEST_SHOWN]}...)" if manifest.source_digest else ""
    )
    verified_on = plain(manifest.processor.name)
    return FailedPreconditionError(
        f"{directory}: the optimized model was verified on {verified_on}; on this "
        f"processor, {other}, {problem}: run `headrace optimize` here, or serve the version that "
        f"it was made of{source}"
    )


def _what(manifest: OptimizedManifest) -> str:
    """What runs it, for people: `openvino-int8`, or else the engines."""
    engines = dict.fromkeys(member.runtime for member in manifest.members)
    return plain(manifest.recipe.get(CANDIDATE, " and ".join(engines)))
