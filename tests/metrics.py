"""Metric families as the text that a scraper gets."""

from collections.abc import Iterable

from headrace.observe.metrics import Family, merge, text


def exposed(families: Iterable[Family]) -> str:
    """The exposition of `families`, those without samples left out."""
    return text(merge(families).values()).decode()
