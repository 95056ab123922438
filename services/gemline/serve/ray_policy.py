"""Our autoscaling policy as Ray Serve calls it: its context in, a number and what to remember out. Decides nothing.

One policy for each deployment. Ray's application-level policies, which see prefill and decode at once, are "not yet
supported" in 2.60 by their own description, and are not needed: each role is decided by signals of its own.
"""

from dataclasses import asdict, fields
from typing import Any

from ray.serve.config import AutoscalingConfig, AutoscalingContext

from gemline.serve.autoscaling import Memory, Scaling, decide
from gemline.signals import Signals

_KEY = "gemline"  # Serve keeps its own counters in the same dict
# Serve averages what replicas say over the last _LOOK_BACK_S, and hears of it every _TOLD_S.
_TOLD_S = 1.0
_LOOK_BACK_S = 4.0


class RolePolicy:
    """Made once in Serve's controller, from `Scaling.to_dict()`."""

    def __init__(self, **scaling: Any) -> None:
        self._scaling = Scaling(**scaling)

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """Serve asks ten times a second; its bounds hold over ours."""
        memory = Memory(**context.policy_state.get(_KEY, {}))
        signals = _signals(context)
        decision = decide(signals, context.target_num_replicas, self._scaling, memory, context.current_time or 0.0)
        return decision.num_replicas, {_KEY: asdict(decision.memory)}


def autoscaling_config(scaling: Scaling, initial_replicas: int) -> AutoscalingConfig:
    """For `serve.deployment`. Serve's own delays are off: the policy has its own."""
    policy = {"policy_function": f"{RolePolicy.__module__}:{RolePolicy.__name__}", "policy_kwargs": scaling.to_dict()}
    return AutoscalingConfig.model_validate(
        {
            "min_replicas": scaling.min_replicas,
            "initial_replicas": initial_replicas,
            "max_replicas": scaling.max_replicas,
            "upscale_delay_s": 0,
            "downscale_delay_s": 0,
            "metrics_interval_s": _TOLD_S,
            "look_back_period_s": _LOOK_BACK_S,
            "policy": policy,
        }
    )


def _signals(context: AutoscalingContext) -> list[Signals]:
    """Of the replicas that run and have said anything."""
    metrics: dict[str, dict[Any, Any]] = context.aggregated_metrics or {}
    names = [field.name for field in fields(Signals)]
    return [
        Signals(**{name: metrics.get(name, {}).get(replica, 0) for name in names})
        for replica in context.running_replicas
        if replica in metrics.get("max_running", {})
    ]
