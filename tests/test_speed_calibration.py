"""Calibration: it recovers known efficiencies, obeys its own rules, and its file is physical and compiled."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import numpy as np
import pytest
import yaml

from estimators import calibration, efficiency, folds, intervals, measurements, observation, priors
from estimators import compile as compiling
from estimators.deployment import Deployment, Placement, Settings, Workload
from estimators.design import MIN_ROWS, REFERENCE, design
from estimators.efficiency import LATENTS, SHARES, Situation
from estimators.estimate import speed_of
from estimators.measurements import Rows
from estimators.metrics import METRICS, drained, printed, running_sequences
from estimators.observation import link_bytes_per_s
from estimators.tiers import LACKS, TIERS, sentence, shape
from estimators.walk import walk
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
    plan = design(rows)
    found = {name: plan.start[name] + latents.get(name, 0.0) for name in LATENTS}
    return replace(rows, value=np.exp(measurements.log_prediction(rows, found)))


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
    assert all(not effect.by for effect in design(lonely).effects)
    few = rows.take(np.arange(MIN_ROWS - 1))
    assert all(not effect.by for effect in design(few).effects)
    many = design(rows)
    for effect in many.effects:
        if effect.by == ("backend", "device"):
            assert sum(effect.label == f"{s.backend}|{s.device}" for s in rows.situations) >= MIN_ROWS


def test_groups_of_the_same_rows_keep_an_effect_each() -> None:
    rows = observed()
    found = {name: set(values) for name, values in measurements.features(rows).items()}

    def everywhere(by: tuple[str, ...]) -> bool:
        return all(len(found[name]) == 1 and not REFERENCE & found[name] for name in by)

    for latent in ("weights", "unpack", "compute"):
        named = [(by, d) for by, d, per_year in priors.PRIORS[latent] if not per_year and everywhere(by)]
        effects = [e for e in design(rows).effects if e.latent == latent and e.by and not e.per_year]
        assert len(named) > 2
        assert [(e.by, e.deviation) for e in effects if everywhere(e.by)] == named


def test_a_family_of_one_device_shares_its_deviation_with_it() -> None:
    rows = observed(gpus=("rtx 4090", "rtx 4060", "rtx 3090"))
    effects = {(e.by, e.label): e.deviation for e in design(rows).effects if e.latent == "weights"}
    by = ("backend", "family", "lineage")
    ada, ampere = (effects[by, f"cuda|{family}|ggml"] for family in ("ada", "ampere"))
    device = effects[("backend", "device"), "cuda|geforce-rtx-3090"]
    assert ampere < ada
    assert np.hypot(ampere, device) == pytest.approx(ada)


def test_no_effect_names_a_device_and_a_model() -> None:
    weights = {"format", "packed", "product", "multiplied", "library", "kernels", "gemv"}
    allowed = {*efficiency.FIXED, *weights, "structure", "cache", "heads"}
    for terms in priors.PRIORS.values():
        for by, deviation, _ in terms:
            assert set(by) <= allowed
            assert deviation > 0


def test_a_large_source_weighs_as_the_root_of_its_size() -> None:
    rows = observed()
    n = len(rows)
    one = replace(rows, source=np.full(n, "big"))
    assert measurements.row_weights(one).sum() == pytest.approx(np.sqrt(n * measurements.SOURCE_ROWS))
    low = replace(one, trust=np.full(n, "low"))
    assert measurements.row_weights(low).sum() < measurements.row_weights(one).sum()


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


def here(held: efficiency.Efficiency, situation: Situation, model: str) -> int:
    """The tier of a model on a device, as a position in TIERS."""
    w = walk(models.load().resolve(model), schemes.get("Q4_K_M"))
    return int(efficiency.tier(held, situation, w))


def test_builds_before_the_first_measured_are_not_extrapolated_to() -> None:
    for backend, year in efficiency.FIRST_BUILDS.items():
        at, before, after = (
            Situation("llama.cpp", "ggml", backend, "a family", "x", year=y).age
            for y in (year, year - 1.0, year + 0.5)
        )
        assert before == at < after
    cuda = [Situation("llama.cpp", "ggml", "cuda", "a family", "x", year=y).age for y in (2023.2, 2023.9)]
    assert cuda[0] < cuda[1]


def test_a_tier_says_what_was_measured() -> None:
    known = Situation("llama.cpp", "ggml", "cuda", "ada", "geforce-rtx-4090")
    raw = {
        "measured": {"cuda|ggml|geforce-rtx-4090": {"dense": [8030, 14768], "moe": [30532]}},
        "families": {"cuda|ggml|ada": {"dense": [8030, 14768], "moe": [30532]}},
    }
    held = efficiency.Efficiency({}, {}, raw)
    assert TIERS[here(held, known, "llama-3.1-8b-instruct")] == "seen"
    assert TIERS[here(held, known, "qwen3-0.6b")] == "model"
    assert TIERS[here(held, known, "gpt-oss-120b")] == "structure"
    assert TIERS[here(held, replace(known, device="geforce-rtx-4060"), "llama-3.1-8b-instruct")] == "kin"
    assert TIERS[here(held, replace(known, device="geforce-rtx-4060"), "qwen3-0.6b")] == "kin-model"
    assert TIERS[here(held, replace(known, device="geforce-rtx-4060"), "deepseek-r1")] == "unseen"
    stranger = replace(known, device="x", family="y")
    assert TIERS[here(held, stranger, "llama-3.1-8b-instruct")] == "unseen"
    wide = efficiency.Efficiency({}, {}, raw | {"backends": {"cuda|ggml": {"dense": 3, "moe": 2}}})
    assert TIERS[here(wide, stranger, "llama-3.1-8b-instruct")] == "backend"
    assert TIERS[here(wide, stranger, "gpt-oss-120b")] == "unseen"
    assert TIERS[here(wide, replace(stranger, backend="tpu"), "llama-3.1-8b-instruct")] == "unseen"


def test_the_less_was_measured_the_wider_is_the_interval() -> None:
    held = efficiency.load()
    for label in held.provenance["measured"]:
        backend, lineage, device = label.split("|")
        for family in ("ada", "a family of the future"):
            situation = Situation("an engine", lineage, backend, family, device)
            for kind in folds.KINDS:
                slow, fast = efficiency.interval(held, situation, kind, np.arange(len(TIERS)))
                assert np.all(fast < 1)
                assert np.all(slow > 1)
                for wide, narrow in efficiency.WIDER:
                    assert slow[TIERS.index(wide)] >= slow[TIERS.index(narrow)]
                    assert fast[TIERS.index(wide)] <= fast[TIERS.index(narrow)]


def test_every_tier_but_the_first_has_a_sentence_that_names_the_device() -> None:
    situation = Situation("llama.cpp", "ggml", "cuda", "ada", "geforce-rtx-4060")
    told = [sentence(i, situation, 1) for i in range(len(TIERS))]
    assert told[0] == ""
    assert len(set(told)) == len(TIERS)
    assert all("geforce-rtx-4060" in words and "{" not in words for words in told[1:])


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
        held = raw["intervals"][kind]
        assert set(held["tiers"]) == set(TIERS)
        for width in held["tiers"].values():
            assert width["fast"] < 1 < width["slow"]
        assert set(held["stretch"]) == set(LACKS.values())
        groups = [group for found in held["stretch"].values() for group in found.items()]
        for label, evidence in [*held["tiers"].items(), *groups]:
            assert evidence["rows"] >= intervals.MIN_GROUP, label
            assert 0 < evidence["units"] <= evidence["rows"], label
        assert all(0.1 < group["by"] < 10 for _, group in groups)


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


def residuals(rows: Rows, spread: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.0, spread, len(rows))


def test_widths_are_those_of_rows_of_which_as_much_was_known() -> None:
    rows = observed()
    errors = {"random": residuals(rows, 0.05), "hardware": residuals(rows, 0.3)}
    known = {"random": np.full(len(rows), "seen"), "hardware": np.full(len(rows), "kin")}
    table = intervals.intervals(rows, errors, known)
    for by, expected in (("random", 0.05), ("hardware", 0.3)):
        ends = intervals.span(rows, table, known[by])
        assert np.median(ends[:, 0]) == pytest.approx(1.7 * expected, rel=0.35)
        assert 0.85 <= intervals.inside(rows, errors[by], ends).mean() <= 0.99


def test_a_group_of_few_devices_takes_most_of_its_width_from_its_parent() -> None:
    rows = observed()
    ada = np.array([s.family == "ada" for s in rows.situations])
    error = np.where(ada, residuals(rows, 0.01), residuals(rows, 0.4))
    tiers = {"hardware": np.full(len(rows), "kin")}
    groups = intervals.intervals(rows, {"hardware": error}, tiers)["decode"]["stretch"]["device"]
    assert 0.4 < groups["cuda|ggml|ada"]["by"] < 1.0  # 40 times nearer, but two devices
    assert not any(label.endswith(s.device) for label in groups for s in rows.situations)


def test_knowing_less_never_makes_an_interval_narrower() -> None:
    rows = observed()
    errors = {"hardware": residuals(rows, 0.5), "model": residuals(rows, 0.1)}
    tiers = {"hardware": np.full(len(rows), "kin"), "model": np.full(len(rows), "kin-model")}
    found = intervals.intervals(rows, errors, tiers)["decode"]["tiers"]
    assert found["kin"]["slow"] == found["kin-model"]["slow"] == found["unseen"]["slow"]
    alone = intervals.intervals(rows, {"model": errors["model"]}, tiers)["decode"]["tiers"]
    assert alone["unseen"]["slow"] < found["unseen"]["slow"]


def test_residuals_of_a_new_source_widen_the_tier_that_others_knew() -> None:
    rows = observed()
    errors = {"random": residuals(rows, 0.05), "source": residuals(rows, 0.5)}
    tiers = {"random": np.full(len(rows), "seen"), "source": np.full(len(rows), "seen")}
    both = intervals.intervals(rows, errors, tiers)["decode"]["tiers"]["seen"]
    alone = intervals.intervals(rows, {"random": errors["random"]}, tiers)["decode"]["tiers"]["seen"]
    assert both["rows"] == 2 * alone["rows"]
    assert np.log(both["slow"]) > 3 * np.log(alone["slow"])


def test_a_group_far_from_any_other_still_has_an_interval() -> None:
    held = efficiency.load()
    nowhere = Situation("an engine", "a lineage", "a backend", "a family", "a device")
    for kind in folds.KINDS:
        slow, fast = efficiency.interval(held, nowhere, kind, np.arange(len(TIERS)))
        tiers = held.intervals[kind]["tiers"]
        assert slow[-1] >= 0.999 * tiers["unseen"][0]
        assert fast[-1] <= 1.001 * tiers["unseen"][1]


def test_nested_widths_never_saw_the_device_they_are_tried_on() -> None:
    rows = observed()
    error = residuals(rows, 0.1)
    odd = np.array([s.device == rows.situations[0].device for s in rows.situations])
    error = np.where(odd, 3.0, error)
    tiers = {"hardware": np.full(len(rows), "kin")}
    ends = intervals.nested(rows, {"hardware": error}, tiers, "hardware")
    assert np.isfinite(ends).all()
    assert not intervals.inside(rows, error, ends)[odd].any()
    assert intervals.inside(rows, error, ends)[~odd].mean() > 0.85
    crossed = intervals.nested(rows, {"hardware": error}, tiers, "hardware", also="model")
    assert np.isfinite(crossed).all()
    assert not intervals.inside(rows, error, crossed)[odd].any()


def test_rows_left_out_are_in_the_tier_of_what_remained() -> None:
    rows = observed()
    assert set(intervals.left_out(rows, "hardware", 2)) <= {"kin", "unseen"}
    assert set(intervals.left_out(rows, "model", 3)) <= {"model", "structure"}
    assert set(intervals.left_out(rows, "random", 6)) == {"seen"}
    everything = intervals.tiers_of(intervals.knowledge(rows), rows)
    assert set(everything) == {"seen"}


def test_fine_tunes_of_a_model_share_its_shape_whatever_its_file_adds() -> None:
    base, tuned = (
        models.load().resolve(x) for x in ("llama-3.1-8b-instruct", "deepseek-r1-distill-llama-8b")
    )
    shapes = {
        float(shape(walk(m, schemes.get(s)).total_params)) for m in (base, tuned) for s in ("Q4_K_M", "bf16")
    }
    assert len(shapes) == 1
