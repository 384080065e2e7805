"""What answers a stream's records, put together as its settings say: one for each thread."""

from dataclasses import dataclass, replace
from typing import Final

from headrace.core import InvalidArgumentError, ReplicaSettings
from headrace.engine import usable_cores
from headrace.scoring.loading import load
from headrace.scoring.scorer import Scorer
from headrace.streaming.answering import Answerer, Answers, Tombstones
from headrace.streaming.codecs import make_codec, make_format
from headrace.streaming.endpoint import endpoint_scorer
from headrace.streaming.formats import Layout
from headrace.streaming.pushing import Pusher, Pushing, make_pusher
from headrace.streaming.settings import EndpointSettings, StreamSettings
from headrace.streaming.versions import ByKey, Shadowed, Versions

_MOST_THREADS: Final = 4
"""Beyond, records are decoded and encoded no faster: that is Python's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorers:
    """The models of a stream, by what they are to it."""

    primary: Scorer | None = None
    canary: Scorer | None = None
    shadow: Scorer | None = None

    @property
    def all(self) -> list[Scorer]:
        """Those that there are."""
        return [one for one in (self.primary, self.canary, self.shadow) if one is not None]

    @property
    def row_problem(self) -> str:
        """The row that a live check found to depend on others; empty while none is known."""
        texts = [
            f"model {one.name}: {one.difference.text}; remove `rows_independent`"
            for one in self.all
            if one.difference is not None
        ]
        return "; ".join(texts)

    def close(self) -> None:
        """Free the models."""
        for one in self.all:
            one.close()


def load_scorers(settings: StreamSettings) -> Scorers:
    """Load the models, or ask their endpoints what they take.

    Raises:
        HeadraceError: One cannot be had; none is kept.
    """
    size = settings.max_batch_size
    found = Scorers()
    try:
        for name in ("primary", "canary", "shadow"):
            told = settings if name == "primary" else getattr(settings, name)
            if told is not None:
                scorer = _scorer(told.model, told.endpoint, size)
                found = replace(found, **{name: scorer})
    except BaseException:
        found.close()
        raise
    return found


def make_answers(settings: StreamSettings, scorers: Scorers) -> list[Answers]:
    """What answers, for each thread one.

    Raises:
        HeadraceError: The settings do not fit a model or a feature view.
    """
    count = settings.model_threads or min(usable_cores(), _MOST_THREADS)
    if not all(scorer.concurrent for scorer in scorers.all):
        count = 1
    pusher = None
    if settings.features is not None:
        count = 1  # rows of the same time are pushed in order
        pusher = make_pusher(settings)
    return [_answers(settings, scorers, pusher) for _ in range(count)]


def _answers(settings: StreamSettings, scorers: Scorers, pusher: Pusher | None) -> Answers:
    found: Answers | None = None
    keeps = scorers.shadow is not None
    if scorers.primary is not None:
        found = _answerer(settings, scorers.primary, keeps_outputs=keeps)
        if scorers.canary is not None:
            assert settings.canary is not None
            canary = _answerer(settings, scorers.canary, keeps_outputs=keeps)
            names = version_name(scorers.primary), version_name(scorers.canary)
            if names[0] == names[1]:
                msg = f"both versions are called '{names[0]}': answers could not be told apart"
                raise InvalidArgumentError(msg)
            found = Versions((found, canary), names, _by_key(settings))
        if scorers.shadow is not None:
            assert settings.shadow is not None
            shadow = _answerer(settings, scorers.shadow, keeps_outputs=True)
            name = version_name(scorers.shadow)
            found = Shadowed(found, shadow, settings.shadow, version=name)
    if pusher is not None:
        found = Pushing(pusher, found)
    assert found is not None  # checked
    return Tombstones(
        found,
        forwards=bool(settings.sink) and settings.output.forwards_tombstones,
        has_shadow_topic=settings.shadow is not None and bool(settings.shadow.sink),
    )


def version_name(scorer: Scorer) -> str:
    """What a header and a metric call a version: its number, where it has one."""
    return scorer.version or scorer.name


def _answerer(settings: StreamSettings, scorer: Scorer, *, keeps_outputs: bool) -> Answerer:
    return Answerer(
        scorer,
        make_codec(settings, scorer),
        max_batch_size=settings.max_batch_size,
        outputs=settings.output.outputs or None,
        max_age_s=settings.errors.max_age_s,
        keeps_outputs=keeps_outputs,
    )


def _by_key(settings: StreamSettings) -> ByKey:
    canary = settings.canary
    assert canary is not None
    reads = None
    if canary.key:
        reads = make_format(settings.format, Layout(inputs=(), outputs=(), passed=(canary.key,)))
    return ByKey(canary, stream=settings.name, reads=reads)


def _scorer(
    model: ReplicaSettings | None, endpoint: EndpointSettings | None, max_batch_size: int
) -> Scorer | None:
    if endpoint is not None:
        return endpoint_scorer(endpoint, max_batch_size=max_batch_size)
    if model is None:
        return None
    return Scorer(load(model), name=model.model_name, version=model.model_version)
