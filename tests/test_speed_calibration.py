"""Calibration: it recovers known efficiencies, obeys its own rules, and its file is physical and compiled."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import numpy as np
import pytest
import yaml

from estimators import calibration, efficiency, folds, observation, priors
from estimators import compile as compiling
from estimators.calibration import MIN_ROWS, Rows
from estimators.deployment import Deployment, Placement, Settings, Workload
from estimators.efficiency import LATENTS, SHARES, Situation
from estimators.estimate import speed_of
from estimators.metrics import METRICS, drained, printed, running_sequences
from estimators.observation import link_bytes_per_s
from hwdb import catalogue as devices
from hwdb.device import Machine
from modeldb import catalogue as models
from modeldb import schemes

GPUS = ("rtx 3090", "rtx 4090", "rtx 4060", "rtx 3060 12gb")
MODELS = ("llama-3.1-8b-instruct", "qwen3-0.6b", "qwen3-14b")


def observed(metric: str = "decode_tps", gpus: tuple[str, ...] = GPUS) -> Rows:
    """One row per GPU, model, scheme and prompt length; the value is a placeholder."""
    known, found = devices.load(), []
    for gpu in gpus:
        device = known.resolve(gpu)
        for model in MODELS:
            for scheme in ("Q4_K_M", "Q8_0", "F16"):
                for prompt in (128, 2048):
                    d = Deployment(
                        models.load().resolve(model), schemes.get(scheme), Machine("x", (device,)),
                        "llama.cpp", "cuda", workload=Workload(prompt_tokens=prompt, output_tokens=64),
                    )  # fmt: skip
                    found.append(observation.Observation(d, metric, 1.0, "a" if prompt < 1000 else "b"))
    rows, kept = observation.rows(found)
    assert len(kept) == len(found)
    return rows


def truth(rows: Rows, **latents: float) -> Rows:
    """The rows with values that these latents produce exactly."""
    plan = calibration.design(rows)
    found = {name: plan.start[name] + latents.get(name, 0.0) for name in LATENTS}
    return replace(rows, value=np.exp(calibration.log_prediction(rows, found)))


def joined(a: Rows, b: Rows) -> Rows:
    columns = {
        f.name: np.concatenate([getattr(a, f.name), getattr(b, f.name)])
        for f in fields(Rows)
        if f.name not in ("situations", "walk")
    }
    names = [f.name for f in fields(a.walk)]
    walk = type(a.walk)(**{n: np.concatenate([getattr(a.walk, n), getattr(b.walk, n)]) for n in names})
    return Rows(situations=[*a.situations, *b.situations], walk=walk, **columns)


def test_a_fit_recovers_what_made_the_rows() -> None:
    rows = joined(truth(observed(), weights=0.9, layer=0.4), truth(observed("prefill_tps"), compute=-0.7))
    table = calibration.fit(rows)
    error = np.abs(np.log(calibration.predict(table, rows) / rows.value))
    assert np.median(error) < 0.02
    assert error.max() < 0.15


def test_a_few_wild_rows_do_not_move_the_fit() -> None:
    rows = truth(observed(), weights=0.5)
    wild = replace(rows, value=np.where(np.arange(len(rows)) % 17 == 3, rows.value * 8, rows.value))
    table = calibration.fit(wild)
    error = np.abs(np.log(calibration.predict(table, rows) / rows.value))
    assert np.median(error) < 0.03


def test_no_effect_rests_on_few_rows_or_on_one_source_and_one_model() -> None:
    rows = observed()
    alone = rows.take(np.array([s.device == rows.situations[0].device for s in rows.situations]))
    lonely = replace(alone, source=np.full(len(alone), "a"), model=np.full(len(alone), "m"))
    assert all(not effect.by for effect in calibration.design(lonely).effects)
    few = rows.take(np.arange(MIN_ROWS - 1))
    assert all(not effect.by for effect in calibration.design(few).effects)
    many = calibration.design(rows)
    for effect in many.effects:
        if effect.by == ("backend", "device"):
            assert sum(effect.label == f"{s.backend}|{s.device}" for s in rows.situations) >= MIN_ROWS


def test_no_effect_names_a_device_and_a_model() -> None:
    allowed = {*efficiency.FIXED, "format", "packed", "structure", "cache", "heads"}
    for terms in priors.PRIORS.values():
        for by, deviation, _ in terms:
            assert set(by) <= allowed
            assert deviation > 0


def test_a_large_source_weighs_as_the_root_of_its_size() -> None:
    rows = observed()
    n = len(rows)
    one = replace(rows, source=np.full(n, "big"))
    assert calibration.row_weights(one).sum() == pytest.approx(np.sqrt(n * calibration.SOURCE_ROWS))
    low = replace(one, trust=np.full(n, "low"))
    assert calibration.row_weights(low).sum() < calibration.row_weights(one).sum()


def test_folds_keep_groups_whole() -> None:
    rows = observed()
    fold = folds.folds(rows, "hardware", 3)
    names = folds.labels(rows, "hardware")
    for name in np.unique(names):
        assert len(set(fold[names == name])) == 1
    assert set(fold) == {0, 1, 2}


def test_errors_left_out_are_small_where_devices_are_alike() -> None:
    rows = truth(observed(), weights=0.4)
    error = folds.cross_validate(rows, "hardware", 2)
    assert np.median(np.abs(error)) < 0.05


def test_weighted_quantiles_follow_the_weights() -> None:
    values, weights = np.array([3.0, 1.0, 2.0]), np.array([1.0, 1.0, 8.0])
    assert folds.quantile(values, weights, 0.5) == 2.0
    assert folds.quantile(values, np.ones(3), 0.99) == 3.0


def test_the_noise_floor_compares_repeats_only() -> None:
    rows = observed()
    assert folds.noise_floor(rows) == {}
    twice = joined(replace(rows, value=np.full(len(rows), 1.0)), replace(rows, value=np.full(len(rows), 1.2)))
    count, median, _ = folds.noise_floor(twice)["decode"]
    assert count == 2 * len(rows)
    assert median == pytest.approx(0.1 / 1.1)


def test_the_shipped_calibration_is_physical() -> None:
    held = efficiency.load()
    families = {"cuda": "ada", "metal": "apple-m4", "cpu": "cpu-x86", "hpu": "gaudi"}
    for backend, family in families.items():
        for lineage in ("ggml", "graph", "eager"):
            for year in (2020.0, 2024.0, 2031.0):
                here = Situation("an engine", lineage, backend, family, "x", year=year)
                found = efficiency.evaluate(held, here, ("f16", "k4", "fp8"))
                for name in LATENTS:
                    assert np.all(found[name] > 0), name
                    assert np.all(np.isfinite(found[name])), name
                for name in SHARES:
                    assert np.all(found[name] <= 1), name


def test_intervals_are_wider_where_the_device_was_never_measured() -> None:
    held = efficiency.load()
    alone = {label for kind in folds.KINDS for label in held.intervals[kind]["seen"]}
    known = (x for x in held.provenance["measured"] if x.startswith("cuda|ggml|") and x not in alone)
    seen = Situation("llama.cpp", "ggml", "cuda", "a family of the future", next(known).split("|")[2])
    new = replace(seen, device="a card of the future")
    for kind in folds.KINDS:
        slow, fast = efficiency.interval(held, seen, kind)
        slower, faster = efficiency.interval(held, new, kind)
        assert faster <= fast < 1 < slow <= slower
    assert efficiency.measured(held, seen)
    assert not efficiency.measured(held, new)


def test_metrics_agree_with_each_other() -> None:
    got = printed(
        prefill_s=0.5, step_s=0.02, request_s=0.01, n_sequences=4, prompt_tokens=100, output_tokens=51
    )
    assert set(got) == set(METRICS)
    whole = 0.5 + 0.01 + 50 * 0.02
    assert got["output_throughput_tps"] == pytest.approx(4 * 51 / whole)
    assert got["total_throughput_tps"] == pytest.approx(4 * 151 / whole)
    assert got["request_throughput"] * 51 == pytest.approx(got["output_throughput_tps"])
    assert got["decode_tps"] * got["tpot_ms"] == pytest.approx(4 * 1e3)
    assert got["prefill_tps"] == pytest.approx(800)
    assert got["ttft_ms"] == pytest.approx(510)


def test_running_sequences_are_bounded_by_cache_limit_and_requests() -> None:
    assert running_sequences(1000, 100e9, 1e9, 256) == 100
    assert running_sequences(1000, 900e9, 1e9, 256) == 256
    assert running_sequences(7, 900e9, 1e9, 256) == 7
    assert running_sequences(7, -5.0, 1e9, 256) == 1


def test_the_compiled_calibration_equals_its_source() -> None:
    assert compiling.compile_efficiency() == json.loads(efficiency.COMPILED.read_text(encoding="utf-8"))


def test_every_shipped_effect_says_what_it_rests_on() -> None:
    text = compiling.SOURCE.read_text(encoding="utf-8")
    raw = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    assert set(raw["latents"]) == set(LATENTS)
    for latent in raw["latents"].values():
        for term in latent["terms"]:
            for label, effect in term["effects"].items():
                assert effect["rows"] >= MIN_ROWS, label
                assert effect["sources"], label
                assert effect["spread"] >= 0, label
    for kind in folds.KINDS:
        for phase in ("seen", "unseen"):
            for label, width in raw["intervals"][kind][phase].items():
                assert width["fast"] < 1 < width["slow"], label
                assert label == "*" or width["rows"] >= folds.MIN_GROUP, label


@pytest.mark.parametrize(
    ("engine", "backend", "scheme", "gpu", "n", "split"),
    [
        ("llama.cpp", "cuda", "Q4_K_M", "rtx 3090", 1, "tensor_parallel"),
        ("llama.cpp", "cuda", "Q4_0", "rtx 3090", 4, "pipeline_parallel"),
        ("llama.cpp", "vulkan", "BF16", "strix halo", 1, "tensor_parallel"),
        ("vllm", "cuda", "bf16", "h100-sxm5-80gb", 4, "tensor_parallel"),
        ("sglang", "cuda", "fp8-per-tensor", "h200-sxm-141gb", 8, "data_parallel"),
        ("deepspeed", "hpu", "bf16", "gaudi-2", 8, "tensor_parallel"),
        ("transformers", "cuda", "gptq-4bit-g128", "a100-sxm4-80gb", 2, "pipeline_parallel"),
        ("mlx", "metal", "mlx-4bit-g64", "apple-m4-max-40-core-gpu", 1, "tensor_parallel"),
        ("llama.cpp", "cpu", "Q8_0", "amd-ryzen-9-7950x", 1, "tensor_parallel"),
    ],
)
def test_calibration_and_estimation_run_the_same_lines(
    engine: str, backend: str, scheme: str, gpu: str, n: int, split: str
) -> None:
    device = devices.load().resolve(gpu)
    machine = Machine("x", () if backend == "cpu" else (device,) * n, device)
    for year in (2023.8, 2026.1):
        for metric in METRICS:
            d = Deployment(
                models.load().resolve("qwen3-14b"), schemes.get(scheme), machine, engine, backend,  # type: ignore[arg-type]
                Placement(**{split: n}), Workload(prompt_tokens=700, output_tokens=90, n_sequences=3),
                Settings(year=year, kv_type_k="q8_0", kv_type_v="q8_0", toolchain="amdvlk"),
            )  # fmt: skip
            rows, _ = observation.rows([observation.Observation(d, metric, 1.0, "a")])
            fitted = float(calibration.predict(efficiency.load().latents, rows)[0])
            assert speed_of(d).metric(metric, d.workload) == pytest.approx(fitted)


def test_a_ragged_queue_runs_fewer_sequences_on_average() -> None:
    assert drained(256, 1000, 1.0) == pytest.approx(256)
    assert drained(1000, 1000, 5.0) == pytest.approx(200)
    many = [drained(256, n, 5.0) for n in (300, 1000, 10_000, 1_000_000)]
    assert many == sorted(many)
    assert many[-1] == pytest.approx(256, rel=0.01)


def test_bridged_cards_beyond_a_pair_meet_over_pcie() -> None:
    card = devices.load().get("a100-pcie-80gb")
    assert card.peer is not None
    assert card.pcie is not None
    pair, four = link_bytes_per_s(card, np.array([2, 4]))
    assert pair == card.peer.bytes_per_s
    assert four == card.pcie.bytes_per_s
    switched = devices.load().get("a100-sxm4-80gb")
    assert link_bytes_per_s(switched, 8) == link_bytes_per_s(switched, 2)


def test_intervals_widen_from_device_to_family_to_neither() -> None:
    rows = observed()
    error = np.random.default_rng(0).normal(0.0, 0.1, len(rows))
    kin = np.arange(len(rows)) % 2 == 0
    table = folds.intervals(rows, [error, error], 3 * error, kin)["decode"]
    for near, far in (("seen", "kin"), ("kin", "unseen")):
        assert table[far]["*"]["slow"] >= table[near]["*"]["slow"] > 1
        assert table[far]["*"]["fast"] <= table[near]["*"]["fast"] < 1
    held = folds.covered(rows, error, {"decode": table}, np.full(len(rows), "seen"))
    assert 0.85 <= held.mean() <= 1.0
