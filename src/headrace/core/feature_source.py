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
    """Feature service that is ready for look-ups.

    Safe to use from several threads.
    """

    service: str
    keys: tuple[TensorSpec, ...]
    """Join keys that a row must have."""
    request: tuple[TensorSpec, ...]
    """Further values of a row, from which features are computed."""
    columns: tuple[TensorSpec, ...]
    """Features of a row, in the service's order. All have shape [-1]."""
    views: tuple[str, ...]
    may_wait: bool
    """Whether a look-up may wait for another machine."""

    def fetch(
        self, keys: Tensors, request: Tensors, *, deadline: float | None = None
    ) -> FetchedFeatures:
        """Return the features of the entities that each row names.

        Args:
            request: Further values of each row.
            deadline: Monotonic time at which the first caller stops waiting; None for never.

        Raises:
            InvalidArgumentError: A key or a value of the request is invalid.
            NotFoundError: An entity is unknown and its view requires it.
            FeaturesUnavailableError: The store cannot be read in time, and there are no defaults.
        """

    def close(self) -> None:
        """Release the store; may be called again."""
