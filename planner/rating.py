"""The quality of one model in one scheme for a task, as the answer and the checks rate it."""

from __future__ import annotations

from estimators import quality
from estimators.deployed_walk import known_walk
from estimators.quantity import Quantity
from modeldb.model import Model
from modeldb.scheme import Scheme
from planner import tasks
from planner.choice import native_family


def rate(model: Model, scheme: Scheme, task: str, kv_type: str = "f16") -> Quantity:
    """Percent of a benchmark of median difficulty, with its 90% interval. Errors: UnknownName for the
    task."""
    walk = known_walk(model, scheme)
    stored = "F16" if scheme.family == native_family(model.native_dtype) else scheme.id
    weights = dict(tasks.get(task).quality)
    return quality.rate(
        model.id, float(walk.total_params), float(walk.active_params), stored, kv_type, weights
    )
