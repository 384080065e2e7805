"""The plan: from what is measured, promised and expected to nodes, clusters and cost. Pure."""

from collections.abc import Sequence

from headrace.advise.capacity.documents import Asked, CapacityPlan, Option
from headrace.advise.capacity.fleet import SloUnreachableError
from headrace.advise.capacity.nodes import NodeType
from headrace.advise.capacity.notes import assumptions
from headrace.advise.capacity.sizer import Sizer


def plan_capacity(asked: Asked, nodes: Sequence[NodeType]) -> CapacityPlan:
    """Compare the types of node.

    Raises:
        SloUnreachableError: None of them answers in time, in any number.
    """
    sizers = [Sizer(asked, node) for node in nodes]
    found: list[Option] = []
    refused: SloUnreachableError | None = None
    for sizer in sizers:
        try:
            found.append(sizer.option())
        except SloUnreachableError as error:
            refused = error
            found.append(Option(node=sizer.node, fits=False, why=(str(error),)))
    if refused is not None and all(one.need is None and not one.fits for one in found):
        raise refused
    options = sorted(found, key=lambda one: (not one.fits, round(one.cost_per_month, 2), one.nodes))
    best = options[0] if options[0].fits else None
    chosen = [one for one in sizers if best is not None and one.node is best.node]
    forecast = asked.forecast
    return CapacityPlan(
        peak_rate=forecast.peak_rate(),
        mean_rate=forecast.mean_rate(),
        options=tuple(options),
        recommended=None if best is None else best.node.name,
        months=tuple(month for one in chosen for month in one.months()),
        autoscale=chosen[0].autoscaling() if chosen else None,
        notes=forecast.curve.notes,
        assumptions=assumptions(asked.curve, asked.promise, forecast),
    )
