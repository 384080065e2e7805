"""What is gained where a balancer sends a request to the less loaded of two replicas?"""

from typing import Final

import numpy as np
import numpy.typing as npt

from headrace.advise.capacity.chances import binomial
from headrace.autoscale.capacity import erlang_c

Array = npt.NDArray[np.float64]

_SETTLED: Final = 1e-4
_NEVER: Final = 1e-300
_MORE_SERVERS: Final = 200


def waiting_ratio(servers: int, load: float, copies: int, gateways: int = 1) -> float:
    """The share of requests that find all servers of their replica busy.

    One replica alone: Erlang's C formula. With a choice of two it is the same chain of births and
    deaths, with rates as above.

    Args:
        load: Of one replica, arrivals x seconds of one server each.
        copies: Replicas to choose from.
        gateways: Balancers.
    """
    if copies == 1:
        return erlang_c(servers, load)
    size = servers + _MORE_SERVERS
    rates = np.full(size, load)
    deaths = np.minimum(np.arange(1, size + 1), servers)
    seen_of = thinned(size + 1, gateways)
    at = np.zeros(size + 1)
    for _ in range(_MORE_SERVERS):
        logs = np.concatenate(([0.0], np.cumsum(np.log(np.maximum(rates, _NEVER) / deaths))))
        at = np.exp(logs - logs.max())
        at /= at.sum()
        wanted = load * preference(at, copies, seen_of)[:-1]
        if float(np.abs(wanted - rates).max()) < _SETTLED * load:
            break
        rates = (rates + wanted) / 2.0
    come = at[:-1] * rates
    return float(come[servers:].sum() / come.sum())


def preference(in_system: Array, copies: int, seen_of: Array | None) -> Array:
    """The rate of a replica by how many requests it has, over the mean rate of all.

    Two are drawn, the same one twice with a probability of 1 / copies. Replicas few in number are
    not independent of each other (all are full together), which makes the choice worth less: it
    is counted as if the same were drawn with 2 / (copies + 1).

    Args:
        in_system: How often a replica has so many.
        seen_of: [has, seen], the probability that a balancer knows of so many; None if of all.
    """
    seen = in_system if seen_of is None else in_system @ seen_of
    at_least = np.cumsum(seen[::-1])[::-1]
    better = at_least + np.append(at_least[1:], 0.0)
    if seen_of is not None:
        better = seen_of @ better
    alone = 2.0 / (copies + 1.0)
    found: Array = alone + (1.0 - alone) * better
    return found


def thinned(size: int, gateways: int) -> Array | None:
    """How many of a replica's requests came by one of the gateways: binomial, [has, seen].

    None of one gateway, which knows all.
    """
    if gateways == 1:
        return None
    numbers = np.arange(size)
    return binomial(numbers, numbers, 1.0 / gateways)
