"""Blue-green: a preview at full size, all requests at once, and a way back for long.

Nothing has to be proved before the switch, so `max_duration_s` bounds nothing here: the preview is
bounded by `preview_s` or by a person's approval, the time after the switch by `keep_s`.
"""

from headrace.core.spec_rollout import BlueGreenSpec
from headrace.core.text import duration_text, percent_text
from headrace.rollout.stages import Plan, Stage
from headrace.rollout.state import Traffic


def blue_green_plan(settings: BlueGreenSpec) -> Plan:
    """One stage without a request of the split, then the switch."""
    stage = Stage(
        name="preview (no requests but those that name the version)",
        traffic=Traffic(),
        pause_s=settings.preview_s,
        until="approval" if settings.approval else None,
    )
    return Plan(stages=(stage,), keep_s=settings.keep_s)


def judged_text(settings: BlueGreenSpec) -> str:
    """What takes a version back after the switch, for people."""
    errors, latency = settings.metrics.errors, settings.metrics.latency
    limits = []
    if errors is not None and errors.max_ratio is not None:
        limits.append(f"more than {percent_text(errors.max_ratio)} of its requests fail")
    if latency is not None and latency.max_s is not None:
        quantile = f"p{100 * latency.quantile:g}"
        limits.append(f"its {quantile} is above {duration_text(latency.max_s)}")
    if not settings.keep_s:
        return "nothing is judged after the switch, as keep_s is 0"
    kept = f"for {duration_text(settings.keep_s)} after the switch"
    if not limits:
        return f"{kept} nothing is judged: only a version that dies goes back by itself"
    return f"{kept} it goes back if {' or '.join(limits)}; nothing else is judged"
