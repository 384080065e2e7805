"""What is each stream's worker told? What the spec says, with the models pinned as endpoints do."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from headrace.control.desired import DesiredStream
from headrace.control.stream_settings import stream_settings
from headrace.core import InvalidArgumentError, ReplicaSettings
from headrace.core.spec import BatchingSpec, EndpointSpec, StreamSpec, SystemSpec
from headrace.core.spec_stream_push import StreamPushSpec
from headrace.core.spec_stream_versions import StreamCanarySpec, StreamShadowSpec
from headrace.runtimes import framework_named
from headrace.runtimes.libraries import FRAMEWORKS
from headrace.streaming.settings import (
    CanarySettings,
    EndpointSettings,
    PushSettings,
    ShadowSettings,
    StreamSettings,
    check_settings,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamModel:
    """A model as workers load it. `reference`: `NAME:VERSION`."""

    reference: str
    settings: ReplicaSettings
    runs_code: bool = False


Pin = Callable[[EndpointSpec, str], StreamModel | None]
"""Pins the model of an endpoint, told with its place in the spec; None if it noted a mistake."""
Wrong = Callable[[str, str], None]
"""Notes a mistake: its place, and what it is."""


def resolve_streams(
    spec: SystemSpec, pin: Pin, wrong: Wrong, home: Path
) -> tuple[DesiredStream, ...]:
    """The streams of a spec whose models and views could be pinned.

    Args:
        home: Whose feature views they push into.
    """
    found = (
        _resolve(stream, f"streams[{i}]", pin, wrong, spec=spec, home=home)
        for i, stream in enumerate(spec.streams)
    )
    return tuple(stream for stream in found if stream is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A version: one of `model` and `endpoint`. `name`: what a stream's status calls it."""

    name: str
    model: ReplicaSettings | None = None
    endpoint: EndpointSettings | None = None
    runs_code: bool = False

    @property
    def runtime(self) -> str:
        """What loads it in the worker; empty if an endpoint does."""
        return "" if self.model is None else self.model.runtime

    @property
    def version(self) -> str:
        """What answers are marked with, as workers do it."""
        return self.name if self.model is None else self.model.model_version or self.name


def _resolve(
    stream: StreamSpec, place: str, pin: Pin, wrong: Wrong, *, spec: SystemSpec, home: Path
) -> DesiredStream | None:
    wanted = {"": stream, ".canary": stream.canary, ".shadow": stream.shadow}
    asked = {
        where: _asked(stream, one, f"{place}{where}", pin)
        for where, one in wanted.items()
        if one is not None and (one.model or one.endpoint)
    }
    is_right = None not in asked.values()
    push = None
    if stream.push is not None:
        push = _pushed(spec, stream.push, place, wrong, home)
        is_right = is_right and push is not None
    if not is_right:
        return None
    versions = {where: one for where, one in asked.items() if one is not None}
    main, canary = versions.get(""), versions.get(".canary")
    if main is not None and canary is not None and main.version == canary.version:
        field = "endpoint" if canary.model is None else "model"
        wrong(f"{place}.canary.{field}", _same_version(main, canary))
        return None
    frameworks = {where: framework_named(version.runtime) for where, version in versions.items()}
    if len(set(frameworks.values()) - {""}) > 1:
        *_, (where, framework) = ((w, f) for w, f in frameworks.items() if f)
        message = (
            f"{versions[where].name} needs {FRAMEWORKS[framework]}, which does not share a "
            "worker's process with the framework of another of the stream's models; serve it by "
            "an endpoint, and name that instead"
        )
        wrong(f"{place}{where}.model", message)
        return None
    return _desired(stream, place, versions, push, wrong)


def _same_version(main: _Asked, canary: _Asked) -> str:
    if main.name == canary.name:
        return f"is {canary.name}, which answers for the other keys too; name another version"
    return (
        f"is {canary.name}, and {main.name} is of the same version number: the header of answers "
        "could not tell them apart; push it as a version of the same model"
    )


def _asked(
    stream: StreamSpec,
    one: StreamSpec | StreamCanarySpec | StreamShadowSpec,
    place: str,
    pin: Pin,
) -> _Asked | None:
    if one.model is None:
        assert one.endpoint is not None, "the spec was checked"
        endpoint = EndpointSettings(
            url="", name=one.endpoint, api_key_file=stream.api_key_file or ""
        )
        return _Asked(name=f"endpoint {one.endpoint}", endpoint=endpoint)
    model = pin(_as_endpoint(stream, one.model), place)
    if model is None:
        return None
    return _Asked(name=model.reference, model=model.settings, runs_code=model.runs_code)


def _as_endpoint(stream: StreamSpec, model: str) -> EndpointSpec:
    """What says the same of a model as the stream does."""
    return EndpointSpec(
        name=stream.name,
        model=model,
        batching=BatchingSpec(
            max_batch_size=stream.max_batch_size, rows_independent=stream.rows_independent
        ),
        timeout_s=None,
        runtime=stream.runtime,
        labels=stream.labels,
        allow_code=stream.allow_code,
        features=stream.features,
        network=True,  # a worker has to reach its broker
    )


def _pushed(
    spec: SystemSpec, push: StreamPushSpec, place: str, wrong: Wrong, home: Path
) -> PushSettings | None:
    from headrace.control.push_settings import (  # noqa: PLC0415  # few streams push
        PushMistakeError,
        push_settings,
    )

    try:
        return push_settings(push, home, url=spec.store_url(push.online_store))
    except PushMistakeError as error:
        wrong(f"{place}.push.{error.field}", str(error))
        return None


def _desired(
    stream: StreamSpec,
    place: str,
    versions: dict[str, _Asked],
    push: PushSettings | None,
    wrong: Wrong,
) -> DesiredStream | None:
    settings = _with_versions(stream, stream_settings(stream), versions)
    settings = msgspec.structs.replace(settings, features=push)
    try:
        check_settings(settings)
    except InvalidArgumentError as error:
        wrong(place, str(error))  # what the spec's own checks do not know
        return None
    bounds, main = stream.bounds, versions.get("")
    pushed = "" if push is None else f"view {push.view}"
    return DesiredStream(
        name=stream.name,
        model=pushed if main is None else main.name,
        settings=settings,
        min_workers=bounds.min,
        max_workers=bounds.max,
        target_lag_s=bounds.target_lag_s,
        runs_code=any(one.runs_code for one in versions.values()),
        others=tuple(one.name for where, one in versions.items() if where),
    )


def _with_versions(
    stream: StreamSpec, settings: StreamSettings, versions: dict[str, _Asked]
) -> StreamSettings:
    main, canary, shadow = (versions.get(where) for where in ("", ".canary", ".shadow"))
    if main is not None:
        settings = msgspec.structs.replace(settings, model=main.model, endpoint=main.endpoint)
    if canary is not None:
        assert stream.canary is not None
        told = CanarySettings(
            model=canary.model,
            endpoint=canary.endpoint,
            percent=stream.canary.percent,
            key=stream.canary.key,
            # Said here: a replay is a stream of another name, and has to choose the same keys.
            salt=stream.canary.salt or stream.name,
        )
        settings = msgspec.structs.replace(settings, canary=told)
    if shadow is not None:
        assert stream.shadow is not None
        beside = ShadowSettings(
            model=shadow.model,
            endpoint=shadow.endpoint,
            sink=stream.shadow.sink or "",
            tolerance=stream.shadow.tolerance,
        )
        settings = msgspec.structs.replace(settings, shadow=beside)
    return settings
