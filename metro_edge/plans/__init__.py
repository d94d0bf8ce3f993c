"""TensorRT plans: built from a bundle, described, cached, explained. Importing it loads no GPU library."""

from metro_edge.plans.build import build_plan, build_plan_of
from metro_edge.plans.cache import Plan, checked_plan, plan_for
from metro_edge.plans.info import PlanInfo, PlanMismatchError
from metro_edge.plans.options import BatchProfile, BuildOptions

__all__ = [
    "BatchProfile",
    "BuildOptions",
    "Plan",
    "PlanInfo",
    "PlanMismatchError",
    "build_plan",
    "build_plan_of",
    "checked_plan",
    "plan_for",
]
