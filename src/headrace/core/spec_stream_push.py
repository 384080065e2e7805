"""What may stand under `push` of a stream: into which feature view its records go."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field

from headrace.core.spec_base import SpecModel
from headrace.core.spec_features import StoreName
from headrace.core.spec_stream_topics import kind_without_fields

_Column = Annotated[str, Field(min_length=1, max_length=300)]


class StreamPushSpec(SpecModel):
    """Records are rows of a feature view, whose values they become in the online store."""

    view: str = Field(
        min_length=1,
        max_length=128,
        description="Of what `headrace features apply` put in force; kept as it was when the "
        "stream was applied.",
    )
    fields: dict[_Column, _Column] = Field(
        default_factory=dict,
        description="By join key or feature: what it is called in records, or which window it is, "
        "where that is not its name.",
    )
    time: str = Field(
        default="",
        max_length=300,
        description="The field with the time of what happened (Unix seconds, or ISO 8601 with a "
        "zone); empty for the record's timestamp.",
    )
    online_store: StoreName | None = Field(
        default=None, description="One of `online_stores`, by name. Null: the home's own."
    )
    timeout_s: float = Field(
        default=5.0, gt=0.0, le=600.0, description="How long a write may take. Unit: seconds."
    )


def push_disagreements(stream: Mapping[Any, Any], place: str) -> Iterator[tuple[str, str]]:
    """What is wrong between `push` and the rest of a stream."""
    if stream.get("push") is None:
        return
    kind = kind_without_fields(stream)
    if kind is not None:
        yield f"{place}.push", f"takes fields of records, and the format {kind!r} has none"
