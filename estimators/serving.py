"""Requests that wait for each other: mean time to first token under concurrency, in closed form.

A prefill has the devices to itself for `prefill_s`; requests that arrive together are prefilled in
turn, so the k-th of n waits k prefills. What is not modelled: decode steps between the chunks of a
prefill, and prefix caches.
"""

from __future__ import annotations

import numpy as np

from estimators.walk import Number


def closed_loop_first_token_s(prefill_s: Number, n_users: Number, prompts_per_user: Number) -> Number:
    """Mean seconds to the first token when each of `n_users` sends its next prompt as soon as it is
    answered.

    All users start at once: their first prompts wait (n + 1) / 2 prefills on average. Later prompts
    come one by one and wait for their own prefill only.
    """
    users, prompts = np.maximum(n_users, 1.0), np.maximum(prompts_per_user, 1.0)
    return prefill_s * (1.0 + (users - 1.0) / (2.0 * prompts))


def burst_first_token_s(prefill_s: Number, answer_s: Number, n_requests: Number, n_running: Number) -> Number:
    """Mean seconds to the first token of `n_requests` that arrive at once, of which `n_running` run
    together.

    The first `n_running` wait for each other's prefills; each later one takes the place of one that
    is answered after `answer_s`, so the i-th waits i / n_running answers.
    """
    running = np.clip(n_running, 1.0, np.maximum(n_requests, 1.0))
    waves = n_requests / running - 1.0
    return prefill_s * (running + 1.0) / 2.0 + np.maximum(waves, 0.0) / 2.0 * answer_s
