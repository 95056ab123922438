"""Our policy as Serve's controller holds and calls it. Starts no Ray."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from ray.serve._private.autoscaling_state import _resolve_policy_callable
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from ray.serve.schema import DeploymentSchema

from gemline.serve.autoscaling import Scaling
from gemline.serve.ray_policy import autoscaling_config
from gemline.signals import Signals

README = Path(__file__).parents[2] / "README.md"


def called(policy: AutoscalingPolicy, signals: dict[str, Signals], state: dict[str, Any], now_s: float) -> Any:
    """As Serve's controller calls it: with what it made of the policy's pickle, and metrics by name and replica."""
    names = Signals.__dataclass_fields__
    context = SimpleNamespace(
        running_replicas=[*signals, "silent"],
        aggregated_metrics={name: {key: it.to_dict()[name] for key, it in signals.items()} for name in names},
        target_num_replicas=1,
        policy_state=state,
        current_time=now_s,
    )
    return _resolve_policy_callable(policy)(context)


def test_the_policy_survives_serves_pickle_and_keeps_its_memory_in_serves_state() -> None:
    policy = autoscaling_config(Scaling("decode", 1, 4, up_after_s=5), 1).policy
    full = {"one": Signals(num_running=8, max_running=8)}
    num, state = called(policy, full, {}, 100.0)
    assert num == 1
    num, state = called(policy, full, state | {"of serve": 1}, 105.0)
    assert num == 2
    assert called(policy, {}, state, 106.0)[0] == 1


def test_the_readmes_serve_config_says_what_the_code_says() -> None:
    block = re.search(r"```yaml\n(- name: decode\n.*?)```", README.read_text(), re.DOTALL)
    assert block
    (told,) = yaml.safe_load(block[1])
    config = AutoscalingConfig.model_validate(DeploymentSchema(**told).autoscaling_config)
    scaling = Scaling(**config.policy.policy_kwargs)
    ours = autoscaling_config(scaling, 2)
    ours.initial_replicas = None  # Serve begins with the least by itself
    assert config == ours
