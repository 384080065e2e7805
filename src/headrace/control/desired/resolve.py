"""Resolution of a spec, which pins the version of each model or reports every mistake.

Blocking: reads and hashes model files, and loads new ones once to prove that they can be served.
"""

import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from headrace.control.desired.models import check_model_path
from headrace.control.desired.resolve_streams import StreamModel, resolve_streams
from headrace.control.gateway.tls import tls_mistakes, upstream_mistakes
from headrace.control.model.desired import (
    DesiredArm,
    DesiredEndpoint,
    DesiredStream,
    Revision,
    make_revision,
)
from headrace.control.payloads.files import check_pyarrow
from headrace.control.reconcile.caller_policy import key_set_mistakes
from headrace.core import (
    NAME_PATTERN,
    CodeNotAllowedError,
    EndpointName,
    FeatureLookup,
    HeadraceError,
    Inspect,
    InvalidArgumentError,
    ModelSignature,
    NotSignedError,
    NullPolicy,
    ReplicaSettings,
    RequestCancelledError,
    SignedSettings,
    SystemClock,
    check_inputs,
    example_inputs,
)
from headrace.core.devices import Device
from headrace.core.encoders import encoder_task
from headrace.core.images import OPENAI_RUNTIMES
from headrace.core.settings import DEFAULT_ROW_CHECK_RATIO, LlmSpec
from headrace.core.spec.access import SecuritySpec, endpoint_access
from headrace.core.spec.parse import (
    EndpointSpec,
    SpecError,
    SpecMistake,
    SystemSpec,
    VersionSpec,
    is_model_path,
)
from headrace.core.spec.rollout import judged_by
from headrace.core.spec.stream_parts import OpenAIPath
from headrace.core.spec.upstream import UpstreamSpec
from headrace.registry import (
    FoundModel,
    ModelVersion,
    Registry,
    is_repository,
    open_repository,
    read_content,
)

if TYPE_CHECKING:
    from headrace.registry.signing import PublicKey

_LOG: Final = logging.getLogger("headrace.control")
FULL_WEIGHT: Final = 100

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pinned:
    """One model version to serve."""

    reference: str
    """`NAME:VERSION`, or the path of a model that is served from there; `content` is then its
    digest, empty if it cannot be computed.
    """
    version: str
    path: Path
    runtime: str
    sha256: str = ""
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    max_batch_size: int | None = None
    runs_code: bool = False
    signed: SignedSettings | None = None
    features: FeatureLookup | None = None
    content: str = ""
    formats: Mapping[str, str] = field(default_factory=dict)
    """Axis order of image inputs, by input."""
    unloadable: str = ""
    """Why the model cannot be served; empty if it can."""
    encodes: bool = False
    """Whether the model is an encoder of texts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """Result of resolving a spec."""

    endpoints: tuple[DesiredEndpoint, ...]
    streams: tuple[DesiredStream, ...] = ()


@dataclass(slots=True, kw_only=True)
class Resolver:
    """Resolver of one spec, used once.

    `inspect` checks that a model in a repository can be served; the registry has a separate check.
    """

    registry: Registry
    inspect: Inspect
    spec: SystemSpec
    max_body_bytes: int
    """The gateway's limit, which replicas share."""
    owner: str = ""
    """The principal that owns models that are pushed from a path."""
    model_roots: tuple[Path, ...] = ()
    """Directories that links must not leave."""
    allow_code: bool = False
    """Every endpoint may have models that run their authors' code, not only those that allow it."""
    kept: Collection[str] = ()
    """Entries of the spec that are not resolved."""
    reloads: Mapping[str, int] = field(default_factory=dict)
    """How often an operator requested a reload of an endpoint's models, by endpoint."""
    _mistakes: list[SpecMistake] = field(default_factory=list)
    _signatures: dict[str, list[ModelSignature]] = field(default_factory=dict)
    """Signatures of the versions of each endpoint."""
    _trusted: "list[PublicKey] | None" = None

    def resolve(self) -> tuple[DesiredEndpoint, ...]:
        """Return the endpoints, with every model pinned and verified.

        Raises:
            SpecError: With every model that is missing, damaged or cannot be served.
        """
        return self._checked(self._endpoints())

    def resolve_streams(self) -> tuple[DesiredStream, ...]:
        """Return the streams; otherwise like `resolve`."""
        return self._checked(self._streams())

    def resolve_all(self) -> Resolved:
        """Return the endpoints and streams; otherwise like `resolve`."""
        self._mistakes += tls_mistakes(self.spec.gateway, now=SystemClock().now())
        self._mistakes += key_set_mistakes(self.spec.auth)
        endpoints = self._endpoints()
        self._check_called(_revisions(endpoints))
        return self._checked(Resolved(endpoints=endpoints, streams=self._streams()))

    def _checked(self, resolved: T) -> T:
        if self._mistakes:
            raise SpecError(self._mistakes)
        return resolved

    def _endpoints(self) -> tuple[DesiredEndpoint, ...]:
        if self.spec.security.require_signature:
            self._read_trusted()
        endpoints: list[DesiredEndpoint] = []
        for i, endpoint in enumerate(self.spec.endpoints):
            if endpoint.name in self.kept:
                continue
            for expanded in self._expand(endpoint, f"endpoints[{i}]"):
                if any(expanded.name == other.name for other in endpoints):
                    self._wrong(
                        f"endpoints[{i}]", f"there are two endpoints called {expanded.name!r}"
                    )
                endpoints.append(expanded)
        self._check_fallbacks(_revisions(endpoints))
        return tuple(endpoints)

    def check_stored(self) -> tuple[Sequence[SpecMistake], Sequence[str]]:
        """Return the mistakes about models that the registry has, and what was not checked.

        Nothing is stored or loaded, and files other than models are not read: they may be on
        another machine.
        """
        revisions: dict[str, list[Revision]] = {}
        notes = []
        needed = {endpoint.fallback for endpoint in self.spec.endpoints}
        needed |= {stream.endpoint for stream in self.spec.streams}
        for i, endpoint in enumerate(self.spec.endpoints):
            location, split = f"endpoints[{i}]", endpoint.split()
            resolved: list[Revision] = []
            for k, version in enumerate(split):
                source = location if endpoint.versions is None else f"{location}.versions[{k}]"
                model = version.model or ""
                if version.upstream is not None:
                    resolved.append(upstream_arm(endpoint, version.upstream, version).revision)
                elif is_model_path(model) and is_repository(Path(model)):
                    continue  # its models are endpoints, with few of the settings
                elif (stored := self._find(endpoint, model)) is None:
                    if endpoint.name in needed or _depends_on_model(endpoint):
                        notes.append(
                            f"{source}: settings that depend on the model, since the registry of "
                            f"{self.registry.home} does not have '{model}'; `headrace apply` "
                            "checks them"
                        )
                elif self._fits(endpoint, stored, f"{source}.model"):
                    # Not the registry's path, which needs the content: a shared store may have it.
                    pinned = _pin_stored(stored, Path(stored.filename), None)
                    arm = self._arm(endpoint, endpoint.name, pinned, version)
                    resolved.append(arm.revision)
            self._check_models(endpoint, resolved, location)
            if len(resolved) == len(split):
                revisions[endpoint.name] = resolved
        self._check_fallbacks(revisions)
        self._check_called(revisions)
        return self._mistakes, notes

    def _find(self, endpoint: EndpointSpec, model: str) -> ModelVersion | None:
        """Return the version that `apply` would take or find stored; None without one."""
        with suppress(HeadraceError, OSError):
            if not is_model_path(model):
                return self.registry.get(model)
            digest = read_content(Path(model)).digest
            stored = (v for v in self.registry.list(endpoint.name) if v.digest == digest)
            return next(stored, None)
        return None

    def _check_models(
        self, endpoint: EndpointSpec, revisions: Sequence[Revision], location: str
    ) -> None:
        signatures = self._signatures.get(endpoint.name, [])
        for key, message in model_mistakes(endpoint, revisions, signatures):
            self._wrong(f"{location}.{key}", message)

    def _check_fallbacks(self, revisions: Mapping[str, Sequence[Revision]]) -> None:
        """Note fallbacks from or to models without OpenAI's API; the spec's check reads no model.

        An encoder is no fallback: vectors of two models do not compare.
        """
        for i, endpoint in enumerate(self.spec.endpoints):
            for name in (endpoint.name, endpoint.fallback) if endpoint.fallback else ():
                others = [r for r in revisions.get(name, ()) if not r.upstream]
                wrong = [revision.model for revision in others if not revision.serves_openai]
                if wrong:
                    message = (
                        f"{wrong[0]} of endpoint '{name}' is not a GGUF model: a fallback, and the "
                        "endpoint that names it, needs one, or an upstream with `protocol: openai`"
                    )
                    self._wrong(f"endpoints[{i}].fallback", message)

    def _check_called(self, revisions: Mapping[str, Sequence[Revision]]) -> None:
        """Note streams that call an endpoint by the API that its models do not have."""
        for i, stream in enumerate(self.spec.streams):
            name, call = stream.endpoint, stream.openai
            called = revisions.get(name or "", ())
            if call is None and any(revision.serves_openai for revision in called):
                message = f"{name!r} is a language model, which takes no tensors; set `openai`"
                self._wrong(f"streams[{i}].endpoint", message)
            if call is not None and called:
                embeds = call.path is OpenAIPath.EMBEDDINGS
                if not any(r.generates or (embeds and r.encodes) for r in called):
                    message = f"endpoint {name!r} has no model that answers {call.path}"
                    self._wrong(f"streams[{i}].openai", message)

    def _streams(self) -> tuple[DesiredStream, ...]:
        return resolve_streams(self.spec, self._pin_for_stream, self._wrong, self.registry.home)

    def _pin_for_stream(self, endpoint: EndpointSpec, location: str) -> StreamModel | None:
        """Return the model that a stream's workers load, pinned as for an endpoint."""
        pinned = self._pin(endpoint, endpoint.split()[0], f"{location}.model")
        if pinned is None:
            return None
        if pinned.runtime in OPENAI_RUNTIMES:
            message = (
                f"{pinned.reference} is a language model, which takes no tensors; instead of "
                "`model`, name an `endpoint` with it, and set `openai`"
            )
            self._wrong(f"{location}.model", message)
            return None
        settings = replica_settings(endpoint, endpoint.name, pinned, self.max_body_bytes)
        return StreamModel(
            reference=pinned.reference, settings=settings, runs_code=pinned.runs_code
        )

    def _expand(self, endpoint: EndpointSpec, location: str) -> list[DesiredEndpoint]:
        """Return the endpoints of one spec entry: several if it names a repository."""
        model = endpoint.model
        if model is not None and is_model_path(model) and is_repository(Path(model)):
            return self._from_repository(endpoint, Path(model), f"{location}.model")
        arms: list[DesiredArm] = []
        for i, version in enumerate(endpoint.split()):
            source = location if endpoint.versions is None else f"{location}.versions[{i}]"
            arm = self._arm_of(endpoint, version, source)
            if arm is None:
                continue
            if any(arm.key == other.key for other in arms):
                description = (
                    f"is {arm.revision.model}, version {arm.key}, which the split already has"
                )
                self._wrong(f"{source}.{'model' if version.model else 'upstream'}", description)
            arms.append(arm)
        self._check_models(endpoint, [arm.revision for arm in arms], location)
        return [desired_endpoint(endpoint, endpoint.name, tuple(arms))]

    def _arm_of(
        self, endpoint: EndpointSpec, version: VersionSpec, location: str
    ) -> DesiredArm | None:
        if version.upstream is not None:
            self._mistakes += upstream_mistakes(
                version.upstream, endpoint.name, f"{location}.upstream", now=SystemClock().now()
            )
            return upstream_arm(endpoint, version.upstream, version)
        pinned = self._pin(endpoint, version, f"{location}.model")
        return None if pinned is None else self._arm(endpoint, endpoint.name, pinned, version)

    def _from_repository(
        self, endpoint: EndpointSpec, path: Path, location: str
    ) -> list[DesiredEndpoint]:
        try:
            check_model_path(path, self.registry.home)
        except HeadraceError as error:
            self._wrong(location, str(error))
            return []
        if self.spec.security.require_signature:
            message = (
                f"{path} is a repository, whose models cannot be signed, and `require_signature` "
                "is on; push and sign each, and name it as NAME:VERSION"
            )
            self._wrong(location, message)
            return []
        if endpoint.features is not None:
            message = f"{path} is a repository; declare one endpoint for each of its models"
            self._wrong(location.replace(".model", ".features"), message)
            return []
        models: dict[str, list[FoundModel]] = {}
        allow_code = self._allows_code(endpoint)
        for stored in open_repository(path, self.inspect, allow_code=allow_code):
            if re.match(NAME_PATTERN, stored.name):
                models.setdefault(stored.name, []).append(stored)
            else:
                self._wrong(location, f"{stored.name}: {stored.reason}")
        endpoints = []
        for name, versions in models.items():
            # Versions come in ascending order; the newest servable version gets all requests.
            valid = [stored for stored in versions if not stored.reason]
            main = (valid or versions)[-1]
            arms = []
            for stored in versions:
                weight = FULL_WEIGHT if stored is main else 0
                version = VersionSpec(model=str(path), weight=weight, replicas=endpoint.replicas)
                arms.append(self._arm(endpoint, name, _pin_versions(stored), version))
            endpoints.append(desired_endpoint(endpoint, name, tuple(arms)))
        return endpoints

    def _pin(self, endpoint: EndpointSpec, version: VersionSpec, location: str) -> Pinned | None:
        try:
            assert version.model is not None, "an upstream is pinned elsewhere"
            stored = self._stored(endpoint, version.model)
            if stored.executes_code and not self._allows_code(endpoint):
                raise CodeNotAllowedError(stored.reference, stored.runtime)  # reported in one place
            if not self._fits(endpoint, stored, location):
                return None
            pinned = _pin_stored(stored, self.registry.path(stored), self._signed(stored))
            return replace(pinned, features=self._features(endpoint, stored, pinned.path))
        except RequestCancelledError:
            raise  # the caller has disconnected
        except HeadraceError as error:
            self._wrong(location, str(error))
            return None

    def _fits(self, endpoint: EndpointSpec, stored: ModelVersion, location: str) -> bool:
        """Note a runtime or example that is not the version's; whether the runtime is."""
        if endpoint.runtime not in {"", stored.runtime}:
            message = (
                f"{stored.reference} is a model of runtime '{stored.runtime}', but the endpoint "
                f"asks for '{endpoint.runtime}'"
            )
            self._wrong(location, message)
            return False
        if endpoint.example is not None:
            self._check_example(endpoint, stored, location)
        self._signatures.setdefault(endpoint.name, []).append(stored.signature)
        return True

    def _check_example(self, endpoint: EndpointSpec, stored: ModelVersion, location: str) -> None:
        signature = replace(stored.signature, example=endpoint.example or {})
        try:
            check_inputs(stored.reference, signature, example_inputs(signature))
            unknown = set(signature.example) - {spec.name for spec in signature.inputs}
            if unknown:
                message = f"{stored.reference} has no input {', '.join(sorted(unknown))}"
                raise InvalidArgumentError(message)
        except (HeadraceError, ValueError, TypeError) as error:
            self._wrong(f"{location.partition('.')[0]}.example", str(error))

    def _stored(self, endpoint: EndpointSpec, model: str) -> ModelVersion:
        if not is_model_path(model):
            stored = self.registry.get(model)
            self.registry.verify(stored)
            return stored
        # Pushing reads the file and, if it is already stored, compares the stored copy with it.
        check_model_path(Path(model), self.registry.home)
        return self.registry.push(
            endpoint.name,
            Path(model),
            runtime=endpoint.runtime,
            allow_code=self._allows_code(endpoint),
            owner=self.owner,
            beneath=next((r for r in self.model_roots if Path(model).is_relative_to(r)), None),
            inspect=self.inspect,
        )

    def _arm(
        self, endpoint: EndpointSpec, name: str, pinned: Pinned, version: VersionSpec
    ) -> DesiredArm:
        settings = replica_settings(endpoint, name, pinned, self.max_body_bytes)
        # A pool's processes host models of several endpoints, and code could reach all of them.
        # A language model needs a process for its memory and its server.
        is_alone = pinned.runs_code or pinned.unloadable or pinned.runtime in OPENAI_RUNTIMES
        pool = "" if is_alone else endpoint.pool or ""
        revision = make_revision(
            endpoint=EndpointName(name),
            model=pinned.reference,
            settings=settings,
            reload=self.reloads.get(name, 0),
            pool=pool,
            network=endpoint.network,
            best_effort=endpoint.isolation == "best-effort",
            memory_bytes=endpoint.memory_bytes,
            runs_code=pinned.runs_code,
            content=pinned.content,
            unloadable=pinned.unloadable,
            encodes=pinned.encodes,
        )
        # A pool's processes belong to the pool, so the model has none.
        replicas = 0 if pool else first_replicas(endpoint, version.replicas)
        return DesiredArm(revision=revision, weight=version.weight, replicas=replicas)

    def _read_trusted(self) -> "list[PublicKey]":
        """Return the trusted public keys; a file without a key is a mistake in the spec."""
        if self._trusted is not None:
            return self._trusted
        from headrace.registry.signing import read_public_keys  # noqa: PLC0415  # only then

        self._trusted = []
        for i, path in enumerate(self.spec.security.trusted_keys):
            try:
                self._trusted += read_public_keys(Path(path))
            except HeadraceError as error:
                self._wrong(f"security.trusted_keys[{i}]", str(error))
        return self._trusted

    def _signed(self, stored: ModelVersion) -> SignedSettings | None:
        """Return the signature that the replica verifies; None if no signature is required.

        Raises:
            NotSignedError: No trusted key signed the stored content.
        """
        if not self.spec.security.require_signature:
            return None
        from headrace.registry.signing import check_signed, signed_settings  # noqa: PLC0415  # only then

        signature = check_signed(stored, self.registry.signatures(stored), self._read_trusted())
        self.registry.verify(stored)
        return signed_settings(stored, signature)

    def _features(
        self, endpoint: EndpointSpec, stored: ModelVersion, path: Path
    ) -> FeatureLookup | None:
        """Return the feature settings of the model, checked against its signature."""
        if endpoint.features is None:
            return None
        from headrace.control.desired.feature_settings import feature_settings  # noqa: PLC0415  # few do

        return feature_settings(
            endpoint.features,
            self.registry.home,
            url=self.spec.store_url(endpoint.features.online_store),
            model=path,
            runtime=stored.runtime,
            signature=stored.signature,
            network=endpoint.network,
        )

    def _allows_code(self, endpoint: EndpointSpec) -> bool:
        return self.allow_code or endpoint.allow_code

    def _wrong(self, location: str, message: str) -> None:
        self._mistakes.append(SpecMistake(place=location, message=message))


def _revisions(endpoints: Iterable[DesiredEndpoint]) -> Mapping[str, Sequence[Revision]]:
    return {str(e.name): [arm.revision for arm in e.arms] for e in endpoints}


def _depends_on_model(endpoint: EndpointSpec) -> bool:
    """Whether the endpoint has a setting that its model may not support."""
    limits = (endpoint.limits.total, endpoint.limits.per_caller)
    return (
        any((endpoint.pool, endpoint.fallback, endpoint.payload_log, endpoint.example))
        or endpoint.runtime != ""
        or endpoint.llm != LlmSpec()
        or any(limit.of_tokens for limit in limits)
    )


def model_mistakes(
    endpoint: EndpointSpec, revisions: Sequence[Revision], signatures: Sequence[ModelSignature]
) -> Iterator[tuple[str, str]]:
    """Yield setting and message of each setting that the endpoint's models do not support.

    Args:
        revisions: The versions; what no version supports is noted only if all are there.
        signatures: The signatures of all versions that are no upstream.
    """
    if endpoint.pool is not None and any(revision.serves_openai for revision in revisions):
        message = "is not for GGUF models, each of which has its own processes; remove it"
        yield "pool", message
    if len(revisions) < len(endpoint.split()):
        return
    if endpoint.llm != LlmSpec() and not any(revision.serves_openai for revision in revisions):
        yield "llm", "is for GGUF models, and this endpoint has none; remove it"
    if not any(revision.generates or revision.encodes for revision in revisions):
        message = (
            "is for models with OpenAI's API, which count tokens, and this endpoint has none; "
            "limit `requests_per_s` or `rows_per_s`"
        )
        limits = endpoint.limits
        for prefix, limit in (("limits", limits.total), ("limits.per_caller", limits.per_caller)):
            for name in limit.of_tokens:
                yield f"{prefix}.{name}", message
    if len(signatures) == len(revisions):
        for key, message in column_mistakes(endpoint, signatures):
            yield f"payload_log.{key}", message


def column_mistakes(
    endpoint: EndpointSpec, signatures: Sequence[ModelSignature]
) -> Iterator[tuple[str, str]]:
    """Yield setting and message of each column of the payload log that no version has.

    Nothing would be dropped or hashed. With `features`, requests have columns of their own.

    Args:
        signatures: The signatures of all versions.
    """
    log = endpoint.payload_log
    if log is None or endpoint.features is not None or not signatures:
        return
    names = {
        side: sorted({tensor.name for signature in signatures for tensor in getattr(signature, of)})
        for side, of in (("input", "inputs"), ("output", "outputs"))
    }
    for key, columns in (("drop", log.drop), ("hash", log.hash)):
        for i, column in enumerate(columns):
            side, _, name = column.partition(".")
            if side in names and names[side] and name not in names[side]:
                listed = ", ".join(f"{side}.{there}" for there in names[side][:_SHOWN_COLUMNS])
                more = len(names[side]) - _SHOWN_COLUMNS
                and_more = f" and {more} more" if more > 0 else ""
                message = f"the model has no column '{column}'; it has {listed}{and_more}"
                yield f"{key}[{i}]", message


_SHOWN_COLUMNS: Final = 10


def check_still_trusted(endpoint: DesiredEndpoint, security: SecuritySpec) -> None:
    """Check a former state of an endpoint against the signatures that are required now.

    Raises:
        NotSignedError: No currently trusted key is proved to have signed a version.
        HeadraceError: A file of `trusted_keys` contains no key.
    """
    if not security.require_signature:
        return
    from headrace.registry.signing import read_public_keys, to_text  # noqa: PLC0415  # only then

    keys = {to_text(key) for path in security.trusted_keys for key in read_public_keys(Path(path))}
    for arm in endpoint.arms:
        signed = arm.revision.settings.signed
        if arm.revision.upstream is None and (
            isinstance(signed, msgspec.UnsetType) or signed.key not in keys
        ):
            message = (
                f"{arm.revision.model} was not served as signed by one of `trusted_keys` then; "
                "sign it, and name it in the spec"
            )
            raise NotSignedError(message)


def replica_settings(
    endpoint: EndpointSpec, name: str, pinned: Pinned, max_body_bytes: int
) -> ReplicaSettings:
    """Return the settings of all replicas of one revision."""
    batching = endpoint.batching
    limit = pinned.max_batch_size
    if limit is None or "max_batch_size" in batching.model_fields_set:
        limit = batching.max_batch_size
    checked = batching.row_check_ratio
    # A default that the spec states explicitly makes no other revision.
    batching_settings = msgspec.structs.replace(
        batching,
        max_batch_size=limit,
        default_timeout_s=endpoint.timeout_s,
        intra_op_threads=msgspec.UNSET,
        rows_independent=batching.rows_independent or msgspec.UNSET,
        row_check_ratio=msgspec.UNSET if checked == DEFAULT_ROW_CHECK_RATIO else checked,
    )
    labels = {**pinned.labels, **endpoint.labels}
    return ReplicaSettings(
        model_name=name,
        model_version=pinned.version,
        path=str(pinned.path),
        runtime=pinned.runtime,
        sha256=pinned.sha256,
        batching=batching_settings,
        intra_op_threads=batching.intra_op_threads or None,
        max_body_bytes=max_body_bytes,
        labels={output: list(names) for output, names in labels.items()},
        signed=msgspec.UNSET if pinned.signed is None else pinned.signed,
        device=msgspec.UNSET if endpoint.device == "auto" else Device(endpoint.device),
        nulls=msgspec.UNSET if endpoint.nulls == "nan" else NullPolicy(endpoint.nulls),
        formats=dict(pinned.formats) or msgspec.UNSET,
        features=msgspec.UNSET if pinned.features is None else pinned.features,
        llm=msgspec.UNSET if endpoint.llm == LlmSpec() else endpoint.llm,
    )


def desired_endpoint(
    endpoint: EndpointSpec, name: str, arms: tuple[DesiredArm, ...]
) -> DesiredEndpoint:
    """Return an endpoint with every setting of its spec entry besides the models."""
    slo_latency_s = endpoint.slo.latency_s if endpoint.slo else None
    if endpoint.payload_log is not None:
        check_pyarrow()
    return DesiredEndpoint(
        name=EndpointName(name),
        timeout_s=endpoint.timeout_s,
        arms=arms,
        sticky=endpoint.sticky,
        rollout=(
            judged_by(
                endpoint.rollout,
                endpoint.slo,
                generates=any(arm.revision.generates for arm in arms),
            )
            if endpoint.rollout
            else None
        ),
        autoscale=(
            msgspec.structs.replace(endpoint.autoscale, slo_latency_s=slo_latency_s)
            if endpoint.autoscale
            else None
        ),
        slo_latency_s=slo_latency_s,
        paused=endpoint.paused,
        fallback=endpoint.fallback,
        access=endpoint_access(endpoint.access),
        aliases=endpoint.aliases,
        limits=endpoint.limits,
        request_log=endpoint.request_log,
        payload_log=endpoint.payload_log,
        drift=endpoint.drift,
        features=endpoint.features.watch() if endpoint.features else None,
        example=endpoint.example,
    )


def with_replicas(endpoint: DesiredEndpoint, entry: EndpointSpec) -> DesiredEndpoint:
    """Return `endpoint` with the replicas and bounds of its spec entry, at unchanged versions."""
    replicas = max(version.replicas for version in entry.split())
    scale = entry.autoscale
    if scale is not None:
        slo_latency_s = endpoint.slo_latency_s
        scale = msgspec.structs.replace(scale, slo_latency_s=slo_latency_s)
    arms = tuple(
        msgspec.structs.replace(
            arm, replicas=first_replicas(entry, arm.replicas if scale else replicas)
        )
        for arm in endpoint.arms
    )
    return msgspec.structs.replace(endpoint, arms=arms, autoscale=scale)


def first_replicas(endpoint: EndpointSpec, replicas: int) -> int:
    """Return a version's initial replica count, within the autoscaler's bounds."""
    scale = endpoint.autoscale
    if scale is None:
        return replicas
    return min(max(replicas, scale.min_replicas, 1), scale.max_replicas)


def upstream_arm(
    endpoint: EndpointSpec, upstream: UpstreamSpec, version: VersionSpec
) -> DesiredArm:
    """Return the arm of an external server, for which no process is started."""
    revision = make_revision(
        endpoint=EndpointName(endpoint.name),
        model=upstream.url,
        settings=ReplicaSettings(
            model_name=endpoint.name, model_version=version.version, path=upstream.url
        ),
        upstream=upstream,
    )
    return DesiredArm(revision=revision, weight=version.weight, replicas=0)


def _pin_stored(stored: ModelVersion, path: Path, signed: SignedSettings | None) -> Pinned:
    # The digest of a directory covers a list of files; a replica can verify only a single file.
    digest = stored.digest.removeprefix("sha256:") if path.is_file() else ""
    return Pinned(
        reference=stored.reference,
        version=stored.version,
        path=path,
        runtime=stored.runtime,
        sha256=digest,
        labels=stored.labels,
        runs_code=stored.executes_code,
        signed=signed,
        encodes=encoder_task(stored.signature) is not None,
    )


def _pin_versions(stored: FoundModel) -> Pinned:
    return Pinned(
        reference=str(stored.path),
        version=stored.version,
        path=stored.path.absolute(),
        runtime=stored.runtime,
        labels=stored.config.labels,
        max_batch_size=stored.config.max_batch_size,
        formats=stored.config.formats,
        unloadable=stored.reason,
        runs_code=stored.runs_code,
        content=_content_of(stored.path),
        encodes=stored.signature is not None and encoder_task(stored.signature) is not None,
    )


def _content_of(path: Path) -> str:
    try:
        return read_content(path).digest
    except (HeadraceError, OSError) as error:
        # For example, links lead outside: the model can be served, but only its path identifies it.
        _LOG.warning("cannot read the content of a model: %s", error, extra={"path": str(path)})
        return ""
