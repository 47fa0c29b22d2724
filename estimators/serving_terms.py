"""What the fit of `serving_model` may learn: where each latent starts, and the groups of servers that may differ in it.

An effect is shrunk to zero by the width of its prior. Widths, and which groups there are, were chosen by the errors of
models, devices and configurations that were left out.
"""

from __future__ import annotations

#: Latents that only the first token knows.
FIRST_TOKEN = frozenset(
    {"request", "burst", "crowding", "admission", "sharing", "waiting", "partial_step", "prefill_attention"}
)

#: Where each latent starts, on its own scale, and the width of its prior on the logit or logarithmic scale.
BASES: dict[str, tuple[float, float]] = {
    "weights": (0.75, 0.5), "experts": (0.6, 1.0), "cache": (0.6, 0.5), "compute": (0.5, 1.0),
    "experts_compute": (0.3, 1.0), "prefill_attention": (0.5, 1.0), "decode_attention": (0.4, 1.0),
    "link": (0.5, 1.0), "layer": (40e-6, 1.0), "eager": (200e-6, 1.0), "moe_layer": (10e-6, 1.0), "step": (1e-3, 1.0),
    "sequence": (5e-6, 1.0), "reduce": (3e-6, 1.0), "exchange": (10e-6, 1.0), "padding": (16.0, 1.0),
    "interference": (0.9, 0.3), "burst": (0.8, 0.5), "crowding": (0.1, 1.0), "sharing": (0.3, 1.0),
    "waiting": (0.5, 0.5), "partial_step": (0.5, 1.0), "request": (0.06, 1.0), "admission": (1e-3, 1.0),
    "drafts": (1.0, 0.2), "speculates": (0.3, 1.0), "fill": (1.0, 0.3), "worker_users": (100.0, 1.0),
    "worker_power": (0.5, 0.5), "worker_tokens": (3e5, 1.0), "prefill_power": (0.5, 0.5),
}  # fmt: skip

#: Of the prior widths below, for latents that each token knows: narrower is worse in sample and better for models and
#: devices left out. What only the first token knows hangs on the engine and its version, and keeps its width; so does
#: how often a kind of server drafts.
WIDTH = 0.5
FULL_WIDTH = FIRST_TOKEN | {"speculates"}
#: What a group of rows shares with its whole architecture rather than with its structure: a thousand rows of one
#: architecture say little about the next, so its own effect takes what is its own. It needs two models or two sources.
ARCHITECTURE = "shape"
#: (latent, features, prior width of an effect).
TERMS: tuple[tuple[str, tuple[str, ...], float], ...] = (
    ("layer", ("engine",), 0.3), ("layer", ("structure",), 1.0), ("layer", ("engine", "structure"), 0.3),
    ("layer", ("family",), 0.3), ("layer", ("engine", "version"), 0.3), ("layer", ("engine", "format"), 0.2),
    ("layer", ("attention",), 0.3), ("layer", ("engine", "family"), 0.2),
    ("layer", ("engine", "structure", "family"), 0.2), ("layer", ("shape",), 0.7),
    ("layer", ("engine", "shape"), 0.7), ("layer", ("client",), 0.6),
    ("moe_layer", ("structure", "format"), 0.5), ("moe_layer", ("engine", "format"), 0.3),
    ("moe_layer", ("engine", "structure"), 0.4),
    ("step", ("engine",), 0.5), ("step", ("client",), 1.0),
    ("sequence", ("client",), 1.0), ("sequence", ("engine",), 0.5), ("sequence", ("engine", "structure"), 0.4),
    ("sequence", ("engine", "format"), 0.3), ("sequence", ("engine", "shape"), 0.7),
    ("weights", ("format",), 0.3), ("weights", ("engine", "format", "family"), 0.3),
    ("experts", ("format",), 0.4), ("experts", ("engine", "format"), 0.3),
    ("experts", ("engine", "format", "family"), 0.3), ("experts", ("engine", "structure"), 0.3),
    ("experts", ("engine", "shape"), 0.7),
    ("cache", ("structure",), 0.3), ("cache", ("family",), 0.3), ("cache", ("engine",), 0.3),
    ("cache", ("engine", "structure"), 0.3), ("cache", ("engine", "shape"), 0.5),
    ("cache", ("attention",), 0.3),
    ("compute", ("format",), 0.4), ("compute", ("engine",), 0.3), ("compute", ("family", "format"), 0.3),
    ("compute", ("engine", "family", "format"), 0.3), ("compute", ("engine", "structure"), 0.3),
    ("compute", ("engine", "version"), 0.6),
    ("experts_compute", ("format",), 0.4), ("experts_compute", ("engine", "format", "family"), 0.4),
    ("experts_compute", ("engine", "version"), 0.6),
    ("decode_attention", ("engine",), 0.4),
    ("interference", ("engine",), 0.3), ("interference", ("engine", "version"), 0.2),
    ("interference", ("engine", "shape"), 0.5), ("interference", ("engine", "structure"), 0.3),
    ("burst", ("engine",), 0.5), ("burst", ("client",), 0.5), ("burst", ("engine", "structure"), 0.4),
    ("burst", ("engine", "mode"), 0.5), ("burst", ("engine", "version"), 0.5),
    ("crowding", ("engine",), 0.5), ("crowding", ("mode",), 0.7), ("crowding", ("engine", "structure"), 0.5),
    ("crowding", ("engine", "mode"), 0.5),
    ("sharing", ("engine",), 0.5), ("sharing", ("engine", "structure"), 0.4),
    ("waiting", ("engine",), 0.5), ("waiting", ("mode",), 0.5), ("waiting", ("engine", "structure"), 0.5),
    ("waiting", ("engine", "mode"), 0.5),
    ("request", ("engine",), 0.5), ("request", ("engine", "mode"), 0.7), ("request", ("client",), 0.5),
    ("request", ("engine", "version"), 0.3), ("request", ("engine", "structure"), 0.4),
    ("request", ("engine", "client"), 0.4), ("request", ("stated",), 0.5),
    ("request", ("engine", "family"), 0.4), ("request", ("mode", "family"), 0.4),
    ("request", ("engine", "structure", "family"), 0.3),
    ("admission", ("engine",), 0.7), ("admission", ("engine", "mode"), 0.7),
    ("worker_users", ("engine",), 0.7), ("worker_users", ("engine", "family"), 0.5),
    ("worker_power", ("engine",), 0.3),
    ("worker_tokens", ("engine",), 0.7), ("worker_tokens", ("engine", "family"), 0.5),
    ("prefill_power", ("engine",), 0.3),
    ("fill", ("engine",), 0.3), ("fill", ("structure",), 0.3),
    ("partial_step", ("engine",), 0.5),
    ("reduce", ("engine",), 0.4), ("reduce", ("family",), 0.4),
    ("padding", ("format",), 0.4),
    ("prefill_attention", ("engine", "version"), 1.0),
    ("drafts", ("engine",), 0.2), ("drafts", ("speculation",), 0.2),
    ("speculates", ("mode",), 1.0), ("speculates", ("engine", "mode"), 1.0),
    ("speculates", ("structure",), 0.7), ("speculates", ("engine", "version"), 1.0),
    ("speculates", ("engine", "family", "mode"), 0.7), ("speculates", ("engine", "attention", "mode"), 0.5),
    ("speculates", ("engine", "version", "format"), 0.7), ("speculates", ("stated",), 1.0),
    ("eager", ("engine",), 0.5), ("eager", ("structure",), 0.5),
)  # fmt: skip
