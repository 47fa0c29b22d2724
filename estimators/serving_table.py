"""Many servers at once: the served columns of a price table, by the closed form that prices one of them."""

from __future__ import annotations

import numpy as np

from estimators import formats
from estimators.efficiency import STRUCTURES, structure_index
from estimators.errors import CannotPrice
from estimators.observation import bandwidth_bytes_per_s, link_bytes_per_s, main_device
from estimators.peaks import Peaks, family, peaks
from estimators.peaks import tier as memory
from estimators.serving import ENGINES, PROMPTS_FIRST, UNCAPPED, chunk_tokens
from estimators.serving_model import Latents, Load, Worker, serve
from estimators.serving_rates import LATENTS, Labels, interval, latents, load, shape_label, shapes
from estimators.table import BOTTLENECKS, DeploymentTable
from estimators.traits import traits
from estimators.walk import Number
from hwdb.device import Device


def applies(t: DeploymentTable) -> bool:
    """Whether every row of the table is a server under a closed loop of several users, of a measured engine."""
    asked = t.extra.get("client") == "closed" and bool(np.all(np.asarray(t.n_sequences) > 1))
    return asked and t.engine in ENGINES and t.backend == "cuda" and bool(t.machine.devices)


def columns(t: DeploymentTable) -> dict[str, Number]:
    """The columns of a PriceTable that concurrency changes. `extra["models"]` names each row's model, so that its
    interval is that of a measured model where it is one; `extra["served_formats"]` are positions in `formats.SERVED`
    (else those of `format_class`). Raises CannotPrice as `serving.predict` does."""
    device = main_device(t.machine, t.backend)
    bandwidth = device and bandwidth_bytes_per_s(device, t.backend, None)
    if not device or not bandwidth:
        raise CannotPrice("the memory bandwidth or the arithmetic rate of the device is not known")
    n, users = len(t), float(np.max(t.n_sequences))
    kind = np.broadcast_to(np.asarray(t.extra.get("served_formats", t.format_class)), n)
    structure = np.broadcast_to(np.asarray(structure_index(t.walk)), n)
    models = np.broadcast_to(np.asarray(t.extra.get("models", ""), dtype=object), n)
    served = serve(_load(t, device, bandwidth, kind, users), _rates(t, device, kind, structure))
    ttft, tpot = served.ttft_s, served.tpot_s
    (first_fast, first_slow), (fast, slow) = _widths(t, device, structure, models)
    names = list(served.parts)
    largest = np.argmax(np.stack([np.broadcast_to(served.parts[p], n) for p in names]), axis=0)
    codes = np.array([BOTTLENECKS.index("compute" if p == "prefill" else p) for p in names])
    return {
        "ttft_s": ttft,
        "ttft_low_s": ttft * first_fast,
        "ttft_high_s": ttft * first_slow,
        "tpot_s": tpot,
        "tpot_low_s": tpot * fast,
        "tpot_high_s": tpot * slow,
        "prefill_tokens_per_s": t.prompt_tokens / ttft,
        "decode_tokens_per_s": served.n_running / tpot,
        "decode_low_tokens_per_s": served.n_running / (tpot * slow),
        "decode_high_tokens_per_s": served.n_running / (tpot * fast),
        "bottleneck": codes[largest],
    }


def _labels(
    t: DeploymentTable, device: Device, kind: int, structure: int, model: str = "", shape: str = ""
) -> Labels:
    return {
        "engine": t.engine,
        "version": "unstated",
        "model": model,
        "format": formats.SERVED[kind],
        "family": family(device),
        "memory": memory(device),
        "structure": STRUCTURES[structure],
        "shape": shape,
        "mode": "together",
        "client": "documented",
        "stated": "stated",
        "attention": "tensor",
        "speculation": "off",
    }


def _rates(t: DeploymentTable, device: Device, kind: Number, structure: Number) -> Latents:
    """Each latent per row: looked up once for every format class, structure and known architecture."""
    held = load()
    known = shapes(held)
    sizes = (np.broadcast_to(np.asarray(x), len(t)) for x in (t.walk.n_layers, t.walk.hidden_size))
    pairs, which = np.unique(np.stack(list(sizes)), axis=1, return_inverse=True)
    names = [name if (name := shape_label(*pair)) in known else "" for pair in pairs.T]
    shape = np.array([names.index(name) for name in names])[which]
    found, where = np.unique(np.stack([kind, structure, shape]), axis=1, return_inverse=True)
    rows = [latents(held, _labels(t, device, k, s, shape=names[n])) for k, s, n in found.T.tolist()]
    return {name: np.array([row[name] for row in rows])[where] for name in LATENTS}


def _widths(t: DeploymentTable, device: Device, structure: Number, models: Number) -> np.ndarray:
    """(metric, end, row): fast and slow ends of TTFT and TPOT; worked out once for each structure and model."""
    held, known = load(), dict[tuple[int, str], int]()
    keys = zip(structure.tolist(), models.tolist(), strict=True)
    which = np.array([known.setdefault(key, len(known)) for key in keys])
    labels = [_labels(t, device, 0, *key) for key in known]
    ends = [[interval(held, x, metric) for x in labels] for metric in ("ttft", "tpot")]
    return np.moveaxis(np.array(ends), 1, 2)[:, :, which]


def _load(t: DeploymentTable, device: Device, bandwidth: float, kind: Number, users: float) -> Load:
    lineage = traits(t.engine).lineage
    by_class: dict[int, Peaks] = {}
    for code in np.unique(kind).tolist():
        rates = peaks(device, lineage, t.backend, formats.unblocked(formats.SERVED[code]), 1.0)
        if rates is None:
            raise CannotPrice("the memory bandwidth or the arithmetic rate of the device is not known")
        by_class[code] = rates
    worker = Worker(
        walk=t.walk,
        n_tensor=np.asarray(t.tensor_parallel, dtype=float),
        n_data=1.0,
        n_stages=np.asarray(t.pipeline_parallel, dtype=float),
        bandwidth_bytes_per_s=bandwidth,
        matrix_flops=np.array([by_class[code].matrix for code in kind.tolist()]),
        attention_flops=np.array([by_class[code].attention for code in kind.tolist()]),
        link_bytes_per_s=float(link_bytes_per_s(device)),
        memory_bytes=float(device.memory_bytes or 0),
        kv_bytes=t.kv_k_bytes,
    )
    return Load(
        decode=worker,
        prefill=worker,
        disaggregated=False,
        n_users=users,
        n_workers=1.0,
        n_prefill_workers=1.0,
        prompt_tokens=t.prompt_tokens,
        output_tokens=t.output_tokens,
        prompts_per_user=10.0,
        drafts=False,
        may_draft=False,
        most_sequences=UNCAPPED,
        chunk_tokens=chunk_tokens(t.engine, device, None),
        prompts_first=t.engine in PROMPTS_FIRST,
        at_once=False,
        ragged=False,
    )
