"""Which plan do a rollout's settings mean?"""

from typing import assert_never

from headrace.core.rollout_settings import (
    AbSettings,
    BlueGreenSettings,
    CanarySettings,
    RolloutSettings,
    ShadowSettings,
)
from headrace.rollout.ab import ab_plan
from headrace.rollout.blue_green import blue_green_plan
from headrace.rollout.canary import canary_plan
from headrace.rollout.shadow import shadow_plan
from headrace.rollout.stages import Plan


def plan_of(settings: RolloutSettings) -> Plan:
    """The stages of `settings`, and what follows them."""
    match settings:
        case CanarySettings():
            return canary_plan(settings)
        case BlueGreenSettings():
            return blue_green_plan(settings)
        case AbSettings():
            return ab_plan(settings)
        case ShadowSettings():
            return shadow_plan(settings)
        case _:
            assert_never(settings)
