"""Mapping of tier priorities to the levels of a replica's queue."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from headrace.core.spec.access import TierSpec

LEVELS: Final = 9
"""Priority levels: 1 is served first, 9 last."""
DEFAULT_LEVEL: Final = 5
"""Level of a request without a priority, and of a caller without a tier (priority 0)."""
MAX_ABOVE: Final = DEFAULT_LEVEL - 1
MAX_BELOW: Final = LEVELS - DEFAULT_LEVEL


def tier_levels(tiers: "Iterable[TierSpec]") -> Mapping[str, int]:
    """Return the level of each tier by its name: different priorities get different levels.

    Beyond `MAX_ABOVE` different priorities above 0, or `MAX_BELOW` below, the farthest share a
    level.
    """
    priorities = {tier.name: tier.priority for tier in tiers}
    above = sorted({priority for priority in priorities.values() if priority > 0})
    below = sorted({priority for priority in priorities.values() if priority < 0}, reverse=True)
    levels = {0: DEFAULT_LEVEL}
    levels |= {p: max(DEFAULT_LEVEL - 1 - i, 1) for i, p in enumerate(above)}
    levels |= {p: min(DEFAULT_LEVEL + 1 + i, LEVELS) for i, p in enumerate(below)}
    return {name: levels[priority] for name, priority in priorities.items()}
