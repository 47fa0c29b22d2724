"""Which groups of measurements may differ, in which quantity, and by how much: the priors of the
calibration."""

from __future__ import annotations

import numpy as np

LOOSENESS = 1.6  # of all priors below, chosen by cross-validation

Prior = tuple[tuple[str, ...], float, bool]  # (features, standard deviation, slope per year)


def _terms(*terms: tuple[str, float]) -> tuple[Prior, ...]:
    return tuple(
        (tuple(by.removesuffix("@year").split()), LOOSENESS * sd, by.endswith("@year")) for by, sd in terms
    )


#: Which groups may differ in which latent, and by how much (in logits, or in logs for overheads).
PRIORS: dict[str, tuple[Prior, ...]] = {
    "weights": _terms(
        ("lineage", 0.15), ("lineage tier", 0.15), ("engine", 0.3), ("engine backend", 0.3), ("backend lineage", 0.4),
        ("backend tier lineage", 0.3),
        ("backend family lineage", 0.3), ("backend device", 0.2), ("backend format lineage", 0.3),
        ("family backend packed", 0.2), ("engine format", 0.2), ("backend lineage structure", 0.2),
        ("backend lineage@year", 0.1), ("backend lineage era", 0.15), ("engine split", 0.2),
        ("backend toolchain", 0.2), ("backend toolchain format", 0.2), ("backend rows", 1.0),
        ("library", 1.2),
    ),
    "experts": _terms(
        ("lineage", 0.15), ("lineage tier", 0.15), ("engine", 0.3), ("engine backend", 0.3), ("backend lineage", 0.4),
        ("backend tier lineage", 0.3),
        ("backend family lineage", 0.3), ("backend format lineage", 0.3), ("backend device", 0.15),
        ("backend lineage@year", 0.1), ("backend toolchain", 0.2), ("backend family format", 0.2),
    ),
    "cache": _terms(
        ("lineage", 0.15), ("lineage tier", 0.15), ("engine", 0.3), ("engine backend", 0.3), ("backend lineage", 0.4),
        ("backend tier lineage", 0.3),
        ("backend family lineage", 0.3), ("backend lineage flash", 0.3), ("backend lineage structure",
        0.3), ("backend lineage@year", 0.15), ("backend device", 0.15), ("cache backend lineage", 0.3),
        ("backend lineage heads", 0.3), ("backend toolchain", 0.4), ("backend family lineage flash", 0.2),
    ),
    "compute": _terms(
        ("engine", 0.4), ("engine backend", 0.4), ("backend lineage", 0.5), ("backend tier lineage", 0.4),
        ("backend family lineage", 0.4), ("backend device", 0.2), ("backend product lineage", 0.4),
        ("family backend packed", 0.4), ("engine product", 0.3), ("engine backend product", 0.4),
        ("backend lineage@year", 0.2), ("backend family lineage@year", 0.15),
        ("backend lineage structure", 0.2), ("backend lineage era",
        0.3), ("backend lineage era multiplied", 0.3), ("engine split", 0.3), ("backend toolchain", 0.4),
        ("backend toolchain product", 0.4), ("backend family product", 0.3), ("backend kernels", 0.5),
    ),
    "experts_compute": _terms(
        ("engine", 0.2), ("engine backend", 0.2), ("backend lineage", 0.3), ("backend tier lineage", 0.2),
        ("backend family lineage", 0.2), ("backend device", 0.1), ("backend product lineage", 0.2),
        ("backend lineage@year", 0.1), ("backend lineage era", 0.2), ("family backend packed", 0.1),
        ("backend toolchain", 0.2), ("backend toolchain product", 0.2), ("backend family product", 0.2),
        ("backend kernels", 0.3),
    ),
    "attention": _terms(
        ("engine", 0.4), ("engine backend", 0.4), ("backend lineage", 0.5), ("backend tier lineage", 0.4),
        ("backend family lineage", 0.4), ("backend lineage flash", 0.5), ("backend lineage structure",
        0.4), ("backend lineage@year", 0.2), ("backend device", 0.2), ("backend lineage heads", 0.4),
        ("backend toolchain", 0.5), ("backend toolchain heads", 0.4), ("backend family lineage flash",
        0.3), ("cache backend lineage", 0.3),
    ),
    "unpack": _terms(
        ("lineage", 0.15), ("lineage tier", 0.15), ("engine", 0.3), ("engine backend", 0.3), ("backend lineage", 0.5),
        ("backend lineage format", 0.5), ("backend family lineage", 0.4),
        ("engine format", 0.2), ("backend lineage era", 0.2), ("backend gemv", 0.4),
    ),
    "reread": _terms(
        ("engine", 0.5), ("backend lineage", 0.5), ("engine backend", 0.7),
    ),
    "link": _terms(("lineage", 0.5), ("lineage family", 0.4), ("lineage device", 0.4)),
    "layer": _terms(
        ("lineage", 0.15), ("lineage tier", 0.15), ("engine", 0.4), ("engine backend", 0.3), ("backend lineage", 0.5),
        ("backend tier lineage", 0.3),
        ("backend family lineage", 0.3), ("backend device", 0.15), ("backend lineage structure", 0.5),
        ("backend lineage structure@year", 0.2), ("backend lineage@year", 0.15), ("engine format", 0.2),
        ("backend lineage era", 0.2), ("backend toolchain", 0.2), ("engine structure packed", 0.4),
        ("engine structure format", 0.4),
    ),
    "step": _terms(("engine", 0.5), ("backend", 0.4)),
    "request": _terms(("engine", 0.7)),
    "reduce": _terms(("engine", 0.5), ("backend family", 0.4), ("lineage", 0.4), ("backend device", 0.3)),
    "hop": _terms(("lineage", 0.7), ("lineage family", 0.4)),
    "sequence": _terms(("lineage", 0.5), ("engine", 0.7)),
    "half": _terms(("lineage", 0.4),),
    "passes": _terms(("backend lineage", 0.4),),
    "padding": _terms(("backend lineage", 0.5), ("engine", 0.4)),
}  # fmt: skip

#: Bases before any measurement, and their standard deviation: shares as logits, overheads as log seconds.
#: 0.75 of bandwidth in decode and 0.5-0.7 of peak in prefill are what kernel tables of A100 and H100 show
#: (Vidur, Frontier); 10-30 us per layer are 10 launches with graphs, 500 us without (Frontier: eager
#: against graphs).
BASES: dict[str, tuple[dict[str, float], float]] = {
    "weights": ({"*": 1.1}, 0.5),
    "experts": ({"*": 0.4}, 0.7),
    "cache": ({"*": 0.4, "eager": -1.5}, 0.7),  # Transformers copies its cache at every step
    "compute": ({"*": 0.0, "graph": 0.6}, 0.7),
    "experts_compute": ({"*": 0.5}, 0.7),  # of `compute`
    "attention": ({"*": -0.8}, 0.7),
    "unpack": ({"*": -0.5}, 1.0),
    # assumed, wide: kernels share what a group reads; expanding keys and values to all heads reads them again
    "reread": ({"*": -3.0, "eager": -1.5}, 1.0),
    # assumed, wide: some microseconds of scheduler and sampler per sequence; experts of a few million weights
    "sequence": ({"*": np.log(1e-5)}, 0.7),
    "half": ({"*": float(np.log(5e6))}, 1.0),
    "padding": ({"*": float(np.log(16.0))}, 0.5),
    # other engines fuse these operations: what is left of them is in their efficiency
    "passes": ({"*": -30.0, "ggml": 0.0}, 0.5),
    "link": ({"*": 0.4}, 0.5),
    "layer": ({"*": np.log(15e-6), "ggml": np.log(30e-6), "eager": np.log(500e-6)}, 0.5),
    "step": ({"*": np.log(5e-4), "ggml": np.log(1e-4), "mlx": np.log(1e-4)}, 0.5),
    "request": ({"*": np.log(8e-3)}, 0.7),
    "reduce": ({"*": np.log(12e-6)}, 0.7),
    "hop": ({"*": np.log(5e-5)}, 0.7),
}
