"""Validation of a stream worker's settings, before anything is opened."""

from collections.abc import Iterator

from headrace.core import InvalidArgumentError
from headrace.core.spec.stream_parts import FailurePolicy, FormatKind
from headrace.streaming.settings import WorkerSettings
from headrace.streaming.windows.panes import window_mistakes


def check_settings(settings: WorkerSettings) -> None:
    """Check that settings are valid and consistent, before anything is opened.

    Raises:
        InvalidArgumentError: A setting is invalid; the message names it.
    """
    for wrong, reason in (
        (not settings.topics, "topics is empty; name at least one topic"),
        (
            settings.sink in settings.topics,
            f"sink '{settings.sink}' is read too: answers would be scored again",
        ),
        (
            settings.dead_letters in settings.topics,
            f"dead_letters '{settings.dead_letters}' is read too: its records would never end",
        ),
        (
            settings.errors.policy is FailurePolicy.DEAD_LETTER and not settings.dead_letters,
            "errors.policy dead_letter needs a topic in dead_letters (or use skip or stop)",
        ),
        (settings.max_batch_size < 1, "max_batch_size must be at least 1"),
        (settings.max_delay_s < 0, "max_delay_s must not be negative"),
        (settings.commit_interval_s < 0, "commit_interval_s must not be negative"),
        (
            settings.model_threads is not None and settings.model_threads < 1,
            "model_threads must be at least 1",
        ),
        (settings.errors.first_delay_s <= 0, "errors.first_delay_s must be greater than 0"),
        (
            settings.errors.max_delay_s < settings.errors.first_delay_s,
            "errors.max_delay_s must not be less than errors.first_delay_s",
        ),
        (not settings.name or "/" in settings.name, "name must not be empty or contain '/'"),
        (
            bool(settings.output.key) and settings.output.forwards_tombstones,
            "output.tombstones forward excludes output.key: a tombstone has no fields",
        ),
        *_of_scoring(settings),
        *_of_windows(settings),
    ):
        if wrong:
            msg = f"stream '{settings.name}': {reason}"
            raise InvalidArgumentError(msg)


def _of_scoring(settings: WorkerSettings) -> Iterator[tuple[bool, str]]:
    has_either = (settings.model is None) != (settings.endpoint is None)
    if settings.features is not None and not settings.sink and not has_either:
        yield settings.model is not None, "set model or endpoint, or neither"
        return
    yield not has_either, "set exactly one of model and endpoint"
    yield not settings.sink, "sink is empty; name the topic of the answers"


def _of_windows(settings: WorkerSettings) -> Iterator[tuple[bool, str]]:
    if settings.windows is None:
        return
    kind = settings.format.kind
    yield (
        kind in {FormatKind.RAW, FormatKind.OPEN_INFERENCE, FormatKind.OPENAI},
        f"windows need a format with fields, and the format {kind} has none",
    )
    for mistake in window_mistakes(settings.windows):
        yield True, mistake
