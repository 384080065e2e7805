"""Interface between a runtime and the source of a model's features."""

from dataclasses import dataclass
from typing import Protocol

from headrace.core.signature import Array, Tensors, TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedFeatures:
    """The features of a batch.

    `columns` [rows] by name; `statuses` BYTES [rows] by view: `PRESENT`, `STALE` or `MISSING`.
    """

    columns: Tensors
    statuses: dict[str, Array]


class FeatureSource(Protocol):
    """One feature service, ready to be asked.

    Safe to use from several threads.
    """

    service: str
    keys: tuple[TensorSpec, ...]
    """The join keys that a row has to name."""
    request: tuple[TensorSpec, ...]
    """Values that it brings besides, for features that are computed of them."""
    columns: tuple[TensorSpec, ...]
    """What it gets, in the service's order. All are of shape [-1]."""
    views: tuple[str, ...]
    may_wait: bool
    """Whether asking can wait for another machine."""

    def fetch(
        self, keys: Tensors, request: Tensors, *, deadline: float | None = None
    ) -> FetchedFeatures:
        """The features of the entities that each row names.

        Args:
            request: What each row brings besides.
            deadline: Monotonic time at which the first caller stops waiting; None for never.

        Raises:
            InvalidArgumentError: A key, or a value of the request, is none.
            NotFoundError: An entity is not known, and the view wants it to be.
            FeaturesUnavailableError: The store cannot be read in time, and nothing stands in.
        """

    def close(self) -> None:
        """Let go of the store; may be called again."""
