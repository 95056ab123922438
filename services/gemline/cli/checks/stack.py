"""A running stack, as one of its clients sees it: reachable, key accepted, models served, an answer comes."""

import time
from functools import partial

from gemline.cli.checks.check import Check, Outcome, attempt, failure, ok
from gemline.client import Client, Message, RetryPolicy

_TIMEOUT_S = 30.0


def checks(address: str, api_key: str | None) -> list[Check]:
    """Every finding about the stack; without a gateway there is one only."""
    with Client(address, api_key=api_key, timeout_s=_TIMEOUT_S, retry=RetryPolicy(max_attempts=1)) as client:
        gateway = attempt(f"gateway {address}", partial(_gateway, client, address), "see `gemline up`; --api-key")
        if gateway.outcome is Outcome.FAILURE:
            return [gateway]
        models = [model.id for model in client.models()]
        return [gateway, *(attempt(f"model {name}", partial(_answer, client, name)) for name in models)]


def _gateway(client: Client, address: str) -> Check:
    begun = time.monotonic()
    names = [model.id for model in client.models()]
    if not names:
        return failure(f"gateway {address}", "serves no model", "are its workers running? see their logs")
    return ok(f"gateway {address}", f"serves {', '.join(names)}; answered in {time.monotonic() - begun:.3f} s")


def _answer(client: Client, model: str) -> Check:
    begun = time.monotonic()
    done = client.chat([Message("user", "Hello")], model=model, max_tokens=8, temperature=0)
    took_s = time.monotonic() - begun
    return ok(f"model {model}", f"{done.usage.completion_tokens} tokens in {took_s:.2f} s")
