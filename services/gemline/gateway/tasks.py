"""Tells a task that is being canceled from a call of it that was."""

import asyncio


def is_task_canceled() -> bool:
    """Whether a CancelledError is meant for this task: grpc.aio raises it for a call whose channel was closed too."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
