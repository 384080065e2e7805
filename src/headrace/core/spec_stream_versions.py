"""What may stand under `canary` and `shadow` of a stream: another version beside what answers."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from pydantic import Field

from headrace.core.names import NAME_PATTERN
from headrace.core.spec_base import SpecModel
from headrace.core.spec_stream_topics import Topic, kind_without_fields

VERSIONS: Final = ("canary", "shadow")
_MODEL: Final = (
    "A model file or directory (relative to the spec file), or a registry reference NAME[:VERSION]."
)
_ENDPOINT: Final = "Instead of `model`: an endpoint of this file, asked through the gateway."


class StreamCanarySpec(SpecModel):
    """Another version, which answers for some keys: always the same ones, and more as it grows."""

    model: str | None = Field(default=None, min_length=1, max_length=4096, description=_MODEL)
    endpoint: str | None = Field(default=None, pattern=NAME_PATTERN, description=_ENDPOINT)
    percent: int = Field(ge=0, le=100, description="How many of a hundred keys.")
    key: str = Field(
        default="",
        max_length=300,
        description="The field of the record that is the key; empty for the record's own.",
    )
    salt: str = Field(
        default="",
        max_length=300,
        description="Streams with the same one choose the same keys, and so does an endpoint of "
        "this name whose split is sticky; empty for the stream's name.",
    )


class StreamShadowSpec(SpecModel):
    """A version that is asked for every record, and whose answers nobody waits for."""

    model: str | None = Field(default=None, min_length=1, max_length=4096, description=_MODEL)
    endpoint: str | None = Field(default=None, pattern=NAME_PATTERN, description=_ENDPOINT)
    sink: Topic | None = Field(
        default=None, description="Where its answers go; null for nowhere: they are only compared."
    )
    tolerance: float = Field(
        default=1e-6,
        ge=0.0,
        allow_inf_nan=False,
        description="Answers agree whose numbers differ by no more.",
    )


def version_disagreements(
    stream: Mapping[Any, Any], place: str, endpoints: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """What is wrong with a stream's other versions beside the rest of it.

    Args:
        endpoints: Of the file.
    """
    for name in VERSIONS:
        version = stream.get(name)
        if isinstance(version, Mapping):
            yield from _of_one(stream, version, f"{place}.{name}", endpoints)
    canary = stream.get("canary")
    if isinstance(canary, Mapping):
        yield from _of_canary(stream, canary, f"{place}.canary")


def _of_one(
    stream: Mapping[Any, Any], version: Mapping[Any, Any], place: str, endpoints: Sequence[str]
) -> Iterator[tuple[str, str]]:
    model, endpoint = version.get("model"), version.get("endpoint")
    if model is not None and endpoint is not None:
        yield f"{place}.endpoint", "'model' and 'endpoint' exclude each other; keep one"
    elif model is None and endpoint is None:
        yield place, "needs 'model', or 'endpoint' for one of this file"
    elif isinstance(endpoint, str) and endpoint not in endpoints:
        yield f"{place}.endpoint", no_endpoint(endpoint, endpoints)
    if stream.get("model") is None and stream.get("endpoint") is None:
        yield place, "stands beside a 'model' or an 'endpoint' that answers, and there is none"


def no_endpoint(name: str, endpoints: Sequence[str]) -> str:
    """That there is no such endpoint, and which ones there are."""
    told = f"there are: {', '.join(endpoints)}" if endpoints else "'endpoints' names none"
    return f"there is no endpoint {name!r}; {told}"


def _of_canary(
    stream: Mapping[Any, Any], canary: Mapping[Any, Any], place: str
) -> Iterator[tuple[str, str]]:
    kind = kind_without_fields(stream)
    if canary.get("key") and kind is not None:
        yield (
            f"{place}.key",
            f"names a field, and the format {kind!r} has none; without it records' keys count",
        )
    for what in ("model", "endpoint"):
        mine = canary.get(what)
        if mine is not None and mine == stream.get(what):
            yield f"{place}.{what}", "is what answers for the other keys; name another version"
