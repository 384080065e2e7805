"""What is loaded: whose it is, whether it can change, what it may do."""

from collections.abc import Iterator
from typing import Final

from headrace.advise.check import Check, Hit, endpoints, files_of, mode_hit, mode_text, models
from headrace.advise.facts import Facts, Need, Severity
from headrace.core.spec import is_model_path

_WRITES: Final = 2
_STRONG_KINDS: Final = frozenset({"Ed25519", "Ed448"})
_CODE_RUNTIMES: Final = frozenset({"python", "torch_export", "torchscript"})
_SIGNED: Final = "security:\n  require_signature: true\n  trusted_keys: [./signer.pub.pem]"


def _unsigned_taken(facts: Facts) -> Iterator[Hit]:
    serves_own = any(True for _ in models(facts.spec))
    if serves_own and not facts.spec.security.require_signature:
        where = "security.require_signature"
        yield Hit(where=where, seen="`require_signature` is false", fix=_SIGNED)


def _unsigned(facts: Facts) -> Iterator[Hit]:
    signed = [one.reference for one in facts.versions if one.signed]
    if not signed:
        return
    for one in facts.versions:
        if one.signed is False:
            served = ", and it is served" if one.is_served else ""
            yield Hit(
                where=f"model {one.reference}",
                seen=f"{one.reference} has no signature{served}; {signed[0]} has one",
                fix=f"headrace models sign {one.reference} --key signer.key",
            )


def _weak_trust(facts: Facts) -> Iterator[Hit]:
    for named, file in files_of(facts, "trusted"):
        for key in file.keys:
            if key.kind not in _STRONG_KINDS:
                size = f" of {key.bits} bits" if key.bits else ""
                yield Hit(where=named.place, seen=f"{named.path} holds {key.kind}{size}")


def _writable_trust(facts: Facts) -> Iterator[Hit]:
    for named, file in files_of(facts, "trusted"):
        if file.opens(_WRITES):
            seen = f"{named.path} has mode {mode_text(file.mode)}"
            yield Hit(where=named.place, seen=seen, fix=f"chmod go-w {named.path}")


def _unversioned(facts: Facts) -> Iterator[Hit]:
    for where, endpoint, model in models(facts.spec):
        if is_model_path(model):
            yield Hit(
                where=where,
                seen=f"endpoint '{endpoint.name}' serves {model}",
                fix=f"headrace models push {endpoint.name} {model}\n"
                f"# then in the spec: model: {endpoint.name}:1",
            )


def _newest(facts: Facts) -> Iterator[Hit]:
    for where, endpoint, model in models(facts.spec):
        if not is_model_path(model) and ":" not in model:
            seen = f"endpoint '{endpoint.name}' serves '{model}', whichever is newest at an apply"
            yield Hit(where=where, seen=seen, fix=f"model: {model}:1")


def _may_run_code(facts: Facts) -> Iterator[Hit]:
    for place, endpoint in endpoints(facts.spec):
        if endpoint.allow_code:
            seen = f"endpoint '{endpoint.name}' has `allow_code: true`"
            yield Hit(where=f"{place}.allow_code", seen=seen)
    if facts.home.allow_code:
        seen = "the control plane was told to let every model bring code"
        yield Hit(where="headrace up --allow-code", seen=seen, fix="headrace up")


def _runs_code(facts: Facts) -> Iterator[Hit]:
    runtimes = {one.reference: one.runtime for one in facts.versions}
    known = {one.reference for one in facts.versions if one.runs_code}
    for where, endpoint, model in models(facts.spec):
        if endpoint.allow_code:
            continue  # told by the check above
        file = facts.files.get(model)
        runtime = endpoint.runtime or runtimes.get(model, "")
        if runtime in _CODE_RUNTIMES or model in known:
            seen = f"endpoint '{endpoint.name}' runs {model} with the runtime '{runtime}'"
            yield Hit(where=where, seen=seen)
        elif file is not None and file.runs_code:
            yield Hit(where=where, seen=f"endpoint '{endpoint.name}': {model} is {file.format}")


def _network(facts: Facts) -> Iterator[Hit]:
    for place, endpoint in endpoints(facts.spec):
        if endpoint.network:
            seen = f"endpoint '{endpoint.name}' has `network: true`"
            yield Hit(where=f"{place}.network", seen=seen)


def _writable_model(facts: Facts) -> Iterator[Hit]:
    for named, file in files_of(facts, "model"):
        if file.opens(_WRITES):
            yield mode_hit(file, where=named.place, fix=f"chmod go-w {named.path}")


CHECKS: Final = (
    Check(
        id="HR401",
        title="Unsigned models are served",
        severity=Severity.MEDIUM,
        why="Who can write to the registry decides what runs, and nobody notices.",
        fix="Sign versions (`headrace models sign`) and require it.",
        needs=(Need.SPEC,),
        find=_unsigned_taken,
    ),
    Check(
        id="HR402",
        title="A version is unsigned, though others are signed",
        severity=Severity.HIGH,
        why="It came by another way than the rest: an accident, or somebody's doing.",
        fix="Find out who pushed it, then sign it or remove it.",
        needs=(Need.VERSIONS,),
        find=_unsigned,
    ),
    Check(
        id="HR403",
        title="A trusted key is of a kind that is not meant for signatures of models",
        severity=Severity.HIGH,
        why="Versions are signed with Ed25519; another key verifies nothing, or is weak.",
        fix="Name the signer's Ed25519 public key.",
        needs=(Need.SPEC, Need.FILES),
        find=_weak_trust,
    ),
    Check(
        id="HR404",
        title="A trusted key can be replaced by others",
        severity=Severity.HIGH,
        why="Who writes the file decides whose models are trusted.",
        fix="chmod go-w the file.",
        needs=(Need.SPEC, Need.FILES),
        find=_writable_trust,
    ),
    Check(
        id="HR405",
        title="A model has no version",
        severity=Severity.LOW,
        why="A file that is overwritten changes what is served; nobody can go back to it.",
        fix="Push it to the registry, and serve NAME:VERSION.",
        needs=(Need.SPEC,),
        find=_unversioned,
    ),
    Check(
        id="HR406",
        title="A model's version is left open",
        severity=Severity.LOW,
        why="Two applies of one spec serve different models.",
        fix="Write NAME:VERSION.",
        needs=(Need.SPEC,),
        find=_newest,
    ),
    Check(
        id="HR407",
        title="A model may bring code",
        severity=Severity.MEDIUM,
        why="Loading it runs what its author wrote, with everything the replica may do.",
        fix="Convert the model to ONNX and take `allow_code` away; else review and sign it.",
        needs=(Need.SPEC,),
        find=_may_run_code,
    ),
    Check(
        id="HR408",
        title="A model is of a format that runs code, and nobody allowed it",
        severity=Severity.HIGH,
        why="It is refused, or it runs what its author wrote without anybody's decision.",
        fix="Convert the model to ONNX, or decide: `allow_code: true`.",
        needs=(Need.SPEC,),
        find=_runs_code,
    ),
    Check(
        id="HR409",
        title="A model's process may open network connections",
        severity=Severity.MEDIUM,
        why="A model that was tampered with can send away what it sees.",
        fix="network: false",
        needs=(Need.SPEC,),
        find=_network,
    ),
    Check(
        id="HR410",
        title="A served model can be overwritten by others",
        severity=Severity.HIGH,
        why="Who writes the file decides what is answered after the next start.",
        fix="chmod go-w the file, or push it to the registry.",
        needs=(Need.SPEC, Need.FILES),
        find=_writable_model,
    ),
)
