"""What asks for more copies, and how many may be added in one step?"""

import math
from typing import Final

import msgspec

from headrace.autoscale.look import Look
from headrace.autoscale.pressure import step_up
from headrace.autoscale.reasons import Reason, Wish
from headrace.autoscale.schedule import scheduled_floor

_EPSILON: Final = 1e-9


def growth_of(look: Look) -> Wish:
    """The most that anything asks for, within what one step may do; 0 if nothing asks."""
    wishes = [Wish(count=0, reason=Reason.STEADY), *_woken(look), *_loaded(look)]
    wishes = [_not_twice(wish, look) for wish in wishes]
    pressed = step_up(
        look.state, look.pressure, look.settings, starting=look.signals.starting, now=look.now
    )
    wishes.append(Wish(count=pressed, reason=Reason.PRESSURE, message=look.pressure.reason))
    most = max(wishes, key=lambda wish: wish.count)
    step = math.ceil(max(look.signals.ready, 1) * look.settings.max_scale_up_ratio)
    reach = max(step, look.current)
    if most.count <= reach:
        return most
    message = f"{most.message}; one step goes to {reach} at most"
    return Wish(count=reach, reason=most.reason, message=message)


def floor_of(look: Look) -> Wish:
    """The fewest that the settings ask for, whatever the load is."""
    settings = look.settings
    scheduled, line = scheduled_floor(settings.schedule, now=look.now)
    least = 0 if look.is_asleep else max(settings.min_replicas, 1)
    if scheduled > least:
        message = f"the schedule '{line}' asks for {scheduled}"
        return Wish(count=min(scheduled, look.cap), reason=Reason.SCHEDULE, message=message)
    return Wish(count=least, reason=Reason.MINIMUM, message=f"the minimum is {least}")


def _woken(look: Look) -> list[Wish]:
    held = look.signals.held
    if not held:
        return []
    copies = held / (look.settings.target_in_flight or math.inf)
    count = max(math.ceil(min(copies, look.cap)), 1)
    message = f"{held} requests wait for the first copy"
    return [Wish(count=count, reason=Reason.WOKEN, message=message)]


def _loaded(look: Look) -> list[Wish]:
    demand = look.demand
    if demand is None:
        return []
    wishes = [_wish(demand.grow, Reason.LOAD, f"on average ({demand.explanation})")]
    if look.is_panicking:
        wishes.append(_wish(demand.burst, Reason.BURST, f"right now ({demand.burst_explanation})"))
    return wishes


def _wish(copies: float, reason: Reason, why: str) -> Wish:
    message = f"the load needs at least {copies:.2f} copies {why}"
    return Wish(count=math.ceil(copies - _EPSILON), reason=reason, message=message)


def _not_twice(wish: Wish, look: Look) -> Wish:
    """`wish` without what the queue of a shortage adds to it while copies are starting.

    In-flight counts grow with every second in which the copies that were asked for are not there
    yet. So while some start, only more arrivals are a reason for more of them.
    """
    starting, current = look.signals.starting, look.current
    grows_with_queue = look.demand is not None and look.demand.by_in_flight
    if not starting or not grows_with_queue or wish.count <= current:
        return wish
    ratio = 1.0
    if look.arrivals is not None and look.state.raised_arrivals:
        ratio = max(look.arrivals / look.state.raised_arrivals, 1.0)
    count = math.ceil(min(wish.count, current * ratio - _EPSILON))
    if count > current:
        return msgspec.structs.replace(wish, count=count)
    message = f"{wish.message}; {starting} copies are starting"
    return Wish(count=count, reason=Reason.STARTING, message=message)
