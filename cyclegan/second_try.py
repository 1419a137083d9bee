"""Whether Ray does a piece of work again because a worker has died over it: perhaps of a photo.

Apart from the pipelines, so that the workers that ask need not load what these do.
"""

from __future__ import annotations

from typing import Any

import ray


def is_second_try() -> bool:
    """Of this actor's or this task's work."""
    context = ray.get_runtime_context()
    if context.get_actor_id():
        return bool(context.was_current_actor_reconstructed)
    # the only place where Ray says it of a task
    worker: Any = ray._private.worker.global_worker
    return bool(worker.core_worker.get_current_task_attempt_number())
