"""Notices an engine that stands still while its process answers pings."""

import asyncio

from gemline.gateway.attached import Attached

_MAX_TICK_S = 1.0


async def falls_silent(reading: asyncio.Task[object], attached: Attached, timeout_s: float) -> bool:
    """Whether no step came for `timeout_s` although tokens were due; False when `reading` has ended.

    Tokens are due while a request on the stream has begun: an engine that steps says so about once a second, also to
    a gateway whose requests wait. Requests in the queue or in prefill make nothing due: that may take any time.
    Seconds are counted tick by tick, so that a gateway which itself stood still blames nobody.
    """
    tick_s = min(_MAX_TICK_S, timeout_s / 4)
    silent_s, last_at_s = 0.0, attached.reported_at_s
    while silent_s < timeout_s:
        done, _ = await asyncio.wait((reading,), timeout=tick_s)
        if done:
            return False
        is_due = attached.expects_tokens and attached.reported_at_s == last_at_s
        silent_s, last_at_s = (silent_s + tick_s if is_due else 0.0), attached.reported_at_s
    return True
