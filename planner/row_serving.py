"""One row of serving.csv -> a served deployment: aggregated, or prefill and decode workers apart.

The parallel sizes of this data set are products in some rows: a run called `tp8_ep8` is stored as tp_size
64 with moe_tp_size 8 and moe_ep_size 8, and vLLM's data-parallel attention over 4 GPUs as tp 4 x dp 4 x ep
16. `_group` undoes that; ids that spell the sizes (`..._tp8_ep8_...`) agree with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from estimators.deployment import Deployment, Placement, Settings, Workload
from estimators.serving_rates import shares_matrices
from modeldb.model import Model
from planner import labels, names
from planner.asks import Ask, Flag, Refusal
from planner.names import Named

Row = Mapping[str, str]

#: Scheme of a precision word; the model's own release decides between block and per-tensor FP8.
SCHEMES = {
    "fp4": "NVFP4",
    "nvfp4": "NVFP4",
    "fp8": "FP8",
    "fp8_block": "FP8",
    "int4_wo": "INT4-g32",
    "int4": "INT4-g32",
    "bf16": "BF16",
}


#: Families of weights whose runs keep an FP8 cache: how many sequences fit, and the decode times, say so.
FP8_CACHES = frozenset({"fp8", "nvfp4"})


#: References of runs without speculation: of 60 rows of this dump whose configuration was also measured 1.25 times
#: faster or slower for another list, each is the slow one.
NO_DRAFTS = "db-dump"


@dataclass(frozen=True, slots=True)
class Group:
    """One worker: devices that hold one copy of the model together."""

    n_devices: int
    tensor: int
    pipeline: int
    expert: int
    data: int


@dataclass(frozen=True)
class _Run:
    """One configuration under its load. `users` are of the whole system."""

    row: Row
    named: Named
    prompt_tokens: int
    output_tokens: int
    users: int

    def share(self, workers: int) -> int:
        """Users of each of so many workers."""
        return max(1, round(self.users / workers))


def ask(row: Row) -> Ask | Refusal:
    """What this row asks: mean TTFT and TPOT of one configuration under its concurrency."""
    named = _named(row)
    if isinstance(named, Refusal):
        return named
    users = concurrency(row)
    if users is None:
        return Refusal("no concurrency: batch_size is blank and the reference does not say")
    isl, osl = labels.count(row["isl"]), labels.count(row["osl"])
    if isl <= 0 or osl <= 0:
        return Refusal("no prompt or output length")
    flags: tuple[Flag, ...] = ()
    if labels.speculative(row["source_ref"]):
        flags = ("speculative",)
    elif row["source_ref"].startswith(NO_DRAFTS):
        flags = ("no-drafts",)
    run = _Run(row, named, isl, osl, users)
    return _disaggregated(run, flags) if row["mode"].strip() == "disagg" else _aggregated(run, flags)


def _named(row: Row) -> Named | Refusal:
    engine = labels.engine(row["engine"])
    if engine is None:
        return Refusal(f"engine `{row['engine']}` is not known")
    device = names.device(row["hardware_canonical"] or row["system"])
    if isinstance(device, Refusal):
        return device
    model = names.model(row["model_canonical"])
    if isinstance(model, Refusal):
        return model
    word = row["gemm_quant_mode"] or row["precision"] or native_word(row["model_canonical"], model)
    if quantized_by_engine(word, row["model_canonical"], engine, model):
        word = "fp8-per-tensor"
    scheme = names.quant(SCHEMES.get(word, word), engine, model.id, model.native_dtype)
    return scheme if isinstance(scheme, Refusal) else Named(engine, device, model, scheme)


def _aggregated(run: _Run, flags: tuple[Flag, ...]) -> Ask:
    """Servers that do both; or, where no server is split so, the whole system as prefill and decode at once."""
    group = _group(run.row, "")
    if whole := _whole_system(group):
        worker = _deployment(run, Group(whole, whole, 1, 1, 1), run.users)
        flags = (*flags, "disaggregated", "assumed-workers")
        return Ask(worker, "serving", flags, prefill=worker, n_devices=whole, concurrency=run.users)
    replicas = _replicas(run.row, group, run.users)
    return Ask(
        _deployment(run, group, run.share(replicas)),
        "serving",
        flags,
        workers=replicas,
        n_devices=group.n_devices * replicas,
        concurrency=run.users,
    )


def _disaggregated(run: _Run, flags: tuple[Flag, ...]) -> Ask:
    """Workers of prefill and of decode apart."""
    row = run.row
    stated = labels.count(row["decode_num_workers"])
    decode, prefill = _group(row, "decode_"), _group(row, "prefill_")
    workers = max(1, stated)
    prefill_workers = max(1, labels.count(row["prefill_num_workers"], 1))
    return Ask(
        _deployment(run, decode, run.share(workers)),
        "serving",
        (*flags, "disaggregated") if stated else (*flags, "disaggregated", "assumed-workers"),
        prefill=_deployment(run, prefill, run.share(prefill_workers)),
        workers=workers,
        prefill_workers=prefill_workers,
        n_devices=decode.n_devices * workers + prefill.n_devices * prefill_workers,
        concurrency=run.users,
    )


def quantized_by_engine(word: str, name: str, engine: str, model: Model) -> bool:
    """Whether FP8 weights have one scale per tensor: TensorRT-LLM's own quantization of a 16-bit release (its runs of
    releases in blocks say `fp8_block` or name the FP8 release)."""
    released = "fp8" in name.lower() or "fp8" in (model.native_dtype or "").lower()
    return engine == "trt-llm" and word == "fp8" and not released


def native_word(name: str, model: Model) -> str:
    """Precision of a release whose row names none: what the repository's name says, else the model's own
    dtype."""
    low = name.lower()
    for word in ("nvfp4", "fp8", "fp4", "int4"):
        if word in low:
            return word
    return model.native_dtype or "bf16"


def concurrency(row: Row) -> int | None:
    """Users at once, over the whole system."""
    for pattern, text in ((r"silicon_concurrency=(\d+)", row["source_ref"]), (r"_c(\d+)(?:_|$)", row["id"])):
        if found := re.search(pattern, text):
            return max(1, int(found.group(1)))
    batch = labels.count(row["batch_size"]) or labels.count(row["decode_batch_size"])
    return batch or None


def _whole_system(group: Group) -> int:
    """Devices of a run whose "tensor" size no matrix can be split by (12, 20, 24, 36, 72 of one NVL72 rack):
    prefill and decode workers of one system, entered as one server. 0 for others."""
    alone = group.data == group.pipeline == 1
    return group.tensor if alone and not shares_matrices(group.tensor) else 0


def _group(row: Row, prefix: str) -> Group:
    """The devices of one worker, after undoing the products described above."""
    tensor, pipeline, data, moe_tensor, expert = (
        max(1, labels.count(row[f"{prefix}{key}"], 1))
        for key in ("tp_size", "pp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size")
    )
    if moe_tensor == expert > 1 and tensor * data == expert * expert:
        return Group(
            expert * pipeline, expert if data == 1 else 1, pipeline, expert, expert if data > 1 else 1
        )
    if tensor == data > 1 and moe_tensor == 1 and expert == tensor * data:
        return Group(tensor * pipeline, 1, pipeline, tensor, tensor)
    ranks = moe_tensor * expert  # devices that share the experts; attention may be repeated over them
    if ranks > tensor * data and ranks % tensor == 0:
        data = ranks // tensor
    return Group(tensor * pipeline * data, tensor, pipeline, expert, data)


def _replicas(row: Row, group: Group, users: int) -> int:
    """Copies of the server that share the users: `batch_size` counts the users of one attention rank."""
    batch = labels.count(row["batch_size"])
    if batch <= 0 or group.data > 1 or users % (batch * group.expert):
        return 1
    return users // (batch * group.expert)


def _deployment(run: _Run, group: Group, users: int) -> Deployment:
    row, named = run.row, run.named
    machine, _ = names.machine(named.device, group.n_devices)
    measured = re.search(r"measured=(\d{4}-\d\d-\d\d)", row["source_ref"])
    closed = "gap" not in row["source_ref"]
    cache = "fp8" if named.scheme.family in FP8_CACHES else "f16"
    return Deployment(
        model=named.model,
        scheme=named.scheme,
        machine=machine,
        engine=named.engine,
        backend="cuda",
        placement=Placement(
            tensor_parallel=group.tensor,
            pipeline_parallel=group.pipeline,
            expert_parallel=group.expert,
            data_parallel=group.data,
        ),
        workload=Workload(
            prompt_tokens=run.prompt_tokens,
            output_tokens=run.output_tokens,
            n_sequences=users,
            client="closed" if users > 1 else "static",
            prompts_per_user=10 if closed else 5,
        ),
        settings=Settings(
            context_tokens=run.prompt_tokens + run.output_tokens,
            kv_type_k=cache,
            kv_type_v=cache,
            engine_version=row["engine_version"],
            year=labels.year(measured.group(1)) if measured else None,
        ),
    )
