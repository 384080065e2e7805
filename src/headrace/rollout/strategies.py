"""Which plan do a rollout's settings mean?"""

from typing import assert_never

from headrace.core.spec_rollout import AbSpec, BlueGreenSpec, CanarySpec, RolloutSpec, ShadowSpec
from headrace.rollout.ab import ab_plan
from headrace.rollout.blue_green import blue_green_plan
from headrace.rollout.canary import canary_plan
from headrace.rollout.shadow import shadow_plan
from headrace.rollout.stages import Plan


def plan_of(settings: RolloutSpec) -> Plan:
    """The stages of `settings`, and what follows them."""
    match settings:
        case CanarySpec():
            return canary_plan(settings)
        case BlueGreenSpec():
            return blue_green_plan(settings)
        case AbSpec():
            return ab_plan(settings)
        case ShadowSpec():
            return shadow_plan(settings)
        case _:
            assert_never(settings)
