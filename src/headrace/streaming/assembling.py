"""Assembly of what answers a stream's records: one for each model thread."""

from typing import Final

from headrace.engine import usable_cores
from headrace.scoring.loading import load
from headrace.scoring.scorer import Scorer
from headrace.streaming.answering import Answerer, Answers, Tombstones
from headrace.streaming.codecs import make_codec
from headrace.streaming.endpoint import endpoint_scorer
from headrace.streaming.pushing import Pusher, Pushing, make_pusher
from headrace.streaming.settings import StreamSettings

_MOST_THREADS: Final = 4
"""Beyond, records are decoded and encoded no faster: that is Python's."""


def load_scorer(settings: StreamSettings) -> Scorer | None:
    """Load the model, or ask the endpoint what it takes; None for a stream that only pushes.

    Raises:
        HeadraceError: It cannot be had.
    """
    if settings.endpoint is not None:
        return endpoint_scorer(settings.endpoint, max_batch_size=settings.max_batch_size)
    model = settings.model
    if model is None:
        return None
    return Scorer(load(model), name=model.model_name, version=model.model_version)


def make_answers(settings: StreamSettings, scorer: Scorer | None) -> list[Answers]:
    """What answers, for each thread one.

    Raises:
        HeadraceError: The settings do not fit the model or a feature view.
    """
    count = settings.model_threads or min(usable_cores(), _MOST_THREADS)
    if scorer is not None and not scorer.concurrent:
        count = 1
    pusher = None
    if settings.features is not None:
        count = 1  # rows of the same time are pushed in order
        pusher = make_pusher(settings)
    return [_answers(settings, scorer, pusher) for _ in range(count)]


def _answers(settings: StreamSettings, scorer: Scorer | None, pusher: Pusher | None) -> Answers:
    answers: Answers | None = None
    if scorer is not None:
        answers = Answerer(
            scorer,
            make_codec(settings, scorer),
            max_batch_size=settings.max_batch_size,
            outputs=settings.output.outputs or None,
            max_age_s=settings.errors.max_age_s,
        )
    if pusher is not None:
        answers = Pushing(pusher, answers)
    assert answers is not None  # checked
    forwards = bool(settings.sink) and settings.output.forwards_tombstones
    return Tombstones(answers, forwards=forwards)
