"""What does blue-green do? A preview at full size, all requests at once, and a way back for long.

Nothing has to be proved before the switch, so `max_duration_s` bounds nothing here: the preview is
bounded by `preview_s` or by a person's approval, the time after the switch by `keep_s`.
"""

from headrace.core.rollout_settings import BlueGreenSettings
from headrace.rollout.stages import Plan, Stage
from headrace.rollout.state import Traffic


def blue_green_plan(settings: BlueGreenSettings) -> Plan:
    """One stage without a request of the split, then the switch."""
    stage = Stage(
        name="preview (no requests but those that name the version)",
        traffic=Traffic(),
        pause_s=settings.preview_s,
        until="approval" if settings.approval else None,
    )
    return Plan(stages=(stage,), keep_s=settings.keep_s)
