"""Checks of models: origin, immutability and permissions."""

from collections.abc import Iterator
from typing import Final

from headrace.advise.audit.check import Hit, check, endpoints, files_of, mode_hit, mode_text, models
from headrace.advise.audit.facts import AuditFacts, FindingSeverity, Need
from headrace.core.spec.parse import is_model_path

_WRITES: Final = 2
_STRONG_KINDS: Final = frozenset({"Ed25519", "Ed448"})
_CODE_RUNTIMES: Final = frozenset({"python", "torch_export", "torchscript"})
_SIGNED: Final = "security:\n  require_signature: true\n  trusted_keys: [./signer.pub.pem]"


@check(
    "HR401",
    FindingSeverity.MEDIUM,
    "Unsigned models are served",
    reason="Any writer to the registry decides what runs, unnoticed.",
    fix="Sign versions (`headrace models sign`) and require signatures.",
)
def _unsigned_taken(facts: AuditFacts) -> Iterator[Hit]:
    serves_own = any(True for _ in models(facts.spec))
    if serves_own and not facts.spec.security.require_signature:
        yield Hit("security.require_signature", "`require_signature` is false", fix=_SIGNED)


@check(
    "HR402",
    FindingSeverity.HIGH,
    "A version is unsigned, but others are signed",
    reason="It was not released like the others: by accident or by an attack.",
    fix="Find out who pushed it, then sign it or remove it.",
    needs=(Need.VERSIONS,),
)
def _unsigned(facts: AuditFacts) -> Iterator[Hit]:
    signed = [version.reference for version in facts.versions if version.signed]
    if not signed:
        return
    for version in facts.versions:
        if version.signed is False:
            served = ", and it is served" if version.is_served else ""
            yield Hit(
                f"model {version.reference}",
                f"{version.reference} has no signature{served}; {signed[0]} has one",
                fix=f"headrace models sign {version.reference} --key signer.key",
            )


@check(
    "HR403",
    FindingSeverity.HIGH,
    "A trusted key is not a model-signing key",
    reason="Versions are signed with Ed25519; another key verifies nothing, or is weak.",
    fix="Set the signer's Ed25519 public key.",
    needs=(Need.SPEC, Need.FILES),
)
def _weak_trust(facts: AuditFacts) -> Iterator[Hit]:
    for named, file in files_of(facts, "trusted"):
        for key in file.keys:
            if key.kind not in _STRONG_KINDS:
                size = f" of {key.bits} bits" if key.bits else ""
                yield Hit(named.location, f"{named.path} holds {key.kind}{size}")


@check(
    "HR404",
    FindingSeverity.HIGH,
    "A trusted key is writable by other users",
    reason="A writer of the file decides whose models are trusted.",
    fix="chmod go-w the file.",
    needs=(Need.SPEC, Need.FILES),
)
def _writable_trust(facts: AuditFacts) -> Iterator[Hit]:
    for named, file in files_of(facts, "trusted"):
        if file.opens(_WRITES):
            evidence = f"{named.path} has mode {mode_text(file.mode)}"
            yield Hit(named.location, evidence, fix=f"chmod go-w {named.path}")


@check(
    "HR405",
    FindingSeverity.LOW,
    "A model has no version",
    reason="Overwriting the file changes what is served, and the old content cannot be restored.",
    fix="Push it to the registry, and serve NAME:VERSION.",
)
def _unversioned(facts: AuditFacts) -> Iterator[Hit]:
    for location, endpoint, model in models(facts.spec):
        if is_model_path(model):
            yield Hit(
                location,
                f"endpoint '{endpoint.name}' serves {model}",
                fix=f"headrace models push {endpoint.name} {model}\n"
                f"# then in the spec: model: {endpoint.name}:1",
            )


@check(
    "HR406",
    FindingSeverity.LOW,
    "A model's version is not pinned",
    reason="Two applies of one spec can serve different models.",
    fix="Write NAME:VERSION.",
)
def _newest(facts: AuditFacts) -> Iterator[Hit]:
    for location, endpoint, model in models(facts.spec):
        if not is_model_path(model) and ":" not in model:
            evidence = (
                f"endpoint '{endpoint.name}' serves '{model}', whichever is newest at an apply"
            )
            yield Hit(location, evidence, fix=f"model: {model}:1")


@check(
    "HR407",
    FindingSeverity.MEDIUM,
    "A model may contain code",
    reason="Loading it runs its author's code with all permissions of the replica.",
    fix="Convert the model to ONNX and remove `allow_code`; otherwise review and sign it.",
)
def _may_run_code(facts: AuditFacts) -> Iterator[Hit]:
    for location, endpoint in endpoints(facts.spec):
        if endpoint.allow_code:
            evidence = f"endpoint '{endpoint.name}' has `allow_code: true`"
            yield Hit(f"{location}.allow_code", evidence)
    if facts.home.allow_code:
        evidence = "the control plane allows code in every model"
        yield Hit("headrace up --allow-code", evidence, fix="headrace up")


@check(
    "HR408",
    FindingSeverity.HIGH,
    "A model's format runs code, without permission",
    reason="It is refused, or runs its author's code without a decision.",
    fix="Convert the model to ONNX, or decide: `allow_code: true`.",
)
def _runs_code(facts: AuditFacts) -> Iterator[Hit]:
    runtimes = {version.reference: version.runtime for version in facts.versions}
    code_versions = {version.reference for version in facts.versions if version.runs_code}
    for location, endpoint, model in models(facts.spec):
        if endpoint.allow_code:
            continue  # reported by the previous check
        file = facts.files.get(model)
        runtime = endpoint.runtime or runtimes.get(model, "")
        if runtime in _CODE_RUNTIMES or model in code_versions:
            evidence = f"endpoint '{endpoint.name}' runs {model} with the runtime '{runtime}'"
            yield Hit(location, evidence)
        elif file is not None and file.runs_code:
            yield Hit(location, f"endpoint '{endpoint.name}': {model} is {file.format}")


@check(
    "HR409",
    FindingSeverity.MEDIUM,
    "A model's process may open network connections",
    reason="A tampered model can send its inputs to another host.",
    fix="network: false",
)
def _network(facts: AuditFacts) -> Iterator[Hit]:
    for location, endpoint in endpoints(facts.spec):
        if endpoint.network:
            yield Hit(f"{location}.network", f"endpoint '{endpoint.name}' has `network: true`")


@check(
    "HR410",
    FindingSeverity.HIGH,
    "A served model is writable by other users",
    reason="A writer of the file decides what is served after the next start.",
    fix="chmod go-w the file, or push it to the registry.",
    needs=(Need.SPEC, Need.FILES),
)
def _writable_model(facts: AuditFacts) -> Iterator[Hit]:
    for named, file in files_of(facts, "model"):
        if file.opens(_WRITES):
            yield mode_hit(file, location=named.location, fix=f"chmod go-w {named.path}")
