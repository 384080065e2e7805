"""Checks of a stream worker's settings, before anything is opened."""

from collections.abc import Iterator

from headrace.core import InvalidArgumentError
from headrace.core.spec.stream_parts import FailurePolicy, FormatKind
from headrace.streaming.settings import WorkerSettings
from headrace.streaming.windows.panes import window_mistakes


def check_settings(settings: WorkerSettings) -> None:
    """Refuse what cannot work, before anything is opened.

    Raises:
        InvalidArgumentError: The text names the setting.
    """
    for wrong, why in (
        (not settings.topics, "topics names none to read"),
        (
            settings.sink in settings.topics,
            f"sink '{settings.sink}' is read too: answers would be scored again, for ever",
        ),
        (
            settings.dead_letters in settings.topics,
            f"dead_letters '{settings.dead_letters}' is read too: its records would never end",
        ),
        (
            settings.errors.policy is FailurePolicy.DEAD_LETTER and not settings.dead_letters,
            "errors.policy is dead_letter, so dead_letters has to name a topic (or skip, or stop)",
        ),
        (settings.max_batch_size < 1, "max_batch_size is at least 1"),
        (settings.max_delay_s < 0, "max_delay_s is not negative"),
        (settings.commit_interval_s < 0, "commit_interval_s is not negative"),
        (
            settings.model_threads is not None and settings.model_threads < 1,
            "model_threads is at least 1",
        ),
        (settings.errors.first_delay_s <= 0, "errors.first_delay_s is more than 0"),
        (
            settings.errors.max_delay_s < settings.errors.first_delay_s,
            "errors.max_delay_s is less than errors.first_delay_s",
        ),
        (not settings.name or "/" in settings.name, "name is not empty and has no '/'"),
        (
            bool(settings.output.key) and settings.output.forwards_tombstones,
            "output.tombstones is forward: a record without a value has no field for output.key",
        ),
        *_of_scoring(settings),
        *_of_windows(settings),
    ):
        if wrong:
            msg = f"stream '{settings.name}': {why}"
            raise InvalidArgumentError(msg)


def _of_scoring(settings: WorkerSettings) -> Iterator[tuple[bool, str]]:
    has_one = (settings.model is None) != (settings.endpoint is None)
    if settings.features is not None and not settings.sink and not has_one:
        yield settings.model is not None, "name one of model and endpoint, or neither"
        return
    yield not has_one, "name one of model and endpoint"
    yield not settings.sink, "sink names no topic for the answers"


def _of_windows(settings: WorkerSettings) -> Iterator[tuple[bool, str]]:
    if settings.windows is None:
        return
    kind = settings.format.kind
    yield (
        kind in {FormatKind.RAW, FormatKind.OPEN_INFERENCE},
        f"windows are added to the fields of a record, and the format {kind} has none",
    )
    for mistake in window_mistakes(settings.windows):
        yield True, mistake
