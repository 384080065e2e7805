"""What do a million requests cost on the cores that they were timed on? Pure."""

from typing import Final

from headrace.optimize.search.asked import SearchRequest, Target
from headrace.optimize.search.journal import Started

_MILLION: Final = 1_000_000
_HOUR_S: Final = 3600.0


def cost_per_million(
    price: float | None, throughput_per_s: float, started: Started, request: SearchRequest
) -> float | None:
    """Of requests; None without a price.

    Args:
        price: Of all cores of the machine, for an hour, in any currency.
        throughput_per_s: Of requests, as they were timed: on all cores, or one after the other on
            as many as one run has threads.
    """
    if price is None or throughput_per_s <= 0:
        return None
    return price * _share(started, request) / (throughput_per_s * _HOUR_S) * _MILLION


def said_of_cost(price: float | None, started: Started, request: SearchRequest) -> str:
    """What the costs are of, for people; empty where there are none and nobody asked for any."""
    if price is None:
        if request.target is not Target.COST:
            return ""
        return (
            "no price was given (--cost-per-hour), so that no cost is shown: whatever the machine "
            "costs, a request costs least where most are answered on its cores, which was measured"
        )
    told = f"cost: {price:g} an hour for {started.cores} cores"
    if is_of_all_cores(request):
        return f"{told}, all of which were busy"
    if _share(started, request) == 1:
        return f"{told}, which one run at a time takes"
    return (
        f"{told}, of which one run takes {request.threads}; more runs at once would slow each "
        "other down, which --target cost measures"
    )


def is_of_all_cores(request: SearchRequest) -> bool:
    """Whether as many runs were timed at once as there are cores for."""
    return request.target in {Target.THROUGHPUT, Target.COST}


def _share(started: Started, request: SearchRequest) -> float:
    """Of the machine, in use while it was timed."""
    return 1.0 if is_of_all_cores(request) else min(1.0, request.threads / started.cores)
