"""`plan measure`: what was measured is kept, used by plan, and forgotten; the meter tells clean runs from others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import runner_tiny

from hwdb import user_devices
from hwdb.device import Device, KernelRates, Machine
from planner import hardware_view, measure, report_json
from runner.bandwidth import AttentionRate, Bandwidth, MatmulRate
from runner.meter import Conditions

pytest.importorskip("numba")

HOST = Device(
    "cpu", "Some CPU", "AMD", "cpu", memory_bytes=16 << 30, fp32_flops=100e9, cpu_cores=4, basis="assumed"
)
QUIET = Conditions(1.0, 0.1, 0.01, 0, 3e9, 3e9, 0)
FOUND = measure.Survey(
    (Bandwidth(1, 20e9, 21e9), Bandwidth(4, 45e9, 46e9)),
    (MatmulRate("F16", 4096, 512, 4, 300e9), MatmulRate("Q8_0", 4096, 512, 4, 900e9)),
    ((4096, 250e9),), 5e-5, 5e-6, QUIET,
)  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLM_PLAN_CONFIG_DIR", str(tmp_path))
    monkeypatch.setattr("hwdb.detect.detect", lambda: Machine("here", host=HOST))
    return tmp_path


def test_what_is_kept_is_used_and_can_be_forgotten() -> None:
    path = measure.keep(FOUND)
    assert path.is_file()
    kept, remarks = user_devices.read_all()
    used = user_devices.apply(HOST, kept)
    assert not remarks
    assert (used.bandwidth_bytes_per_s, used.fp32_flops, used.int8_ops) == (45e9, 300e9, 900e9)
    assert used.basis == "measured"
    assert "1: 20.0, 4: 45.0" in dict(used.origins)["bandwidth_bytes_per_s"]
    assert measure.with_survey(Machine("here", host=HOST), FOUND).host == used
    assert measure.forget()
    assert not measure.forget()
    assert user_devices.read_all() == ((), ())


def test_bandwidth_is_kept_by_threads() -> None:
    measure.keep(FOUND)
    (kept,), _ = user_devices.read_all()
    assert user_devices.apply(HOST, (kept,)).thread_bandwidths == ((1, 20e9), (4, 45e9))


@pytest.mark.parametrize(
    "broken", [[[4, 1e9], [1, 2e9]], [[0, 1e9]], [[1, -1.0]], [[1]], "no", [[1, 1e9, 2]]]
)
def test_bandwidths_by_threads_that_cannot_be_are_refused(folder: Path, broken: object) -> None:
    path = measure.keep(FOUND)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"thread_bandwidths": broken}))
    kept, remarks = user_devices.read_all()
    assert kept == ()
    assert "thread_bandwidths are ascending numbers of threads" in remarks[0]


def test_rates_of_kernels_and_threads_are_shown_with_their_units() -> None:
    kernels = KernelRates((("F16", 44e9, 300e9), ("Q8_0", 40e9, 900e9)), (20e9, 10e9), 170e9, 2e-5)
    device = replace(HOST, kernels=kernels, thread_bandwidths=((1, 20e9), (4, 45e9)))
    text = hardware_view.device_text(report_json.device(device))
    assert "1 thread 20 GB/s, 4 threads 45 GB/s\n" in text
    assert "F16 44 GB/s 0.3 TFLOP/s, Q8_0 40 GB/s 0.9 TFLOP/s, attention_bytes_per_s 20 GB/s, 10 GB/s" in text
    assert "e+" not in text
    survey = measure.text(FOUND, "here")
    assert "read, 1 thread " in survey
    assert "read, 4 threads " in survey


def test_a_contaminated_survey_says_so_where_it_is_kept() -> None:
    busy = replace(FOUND, conditions=replace(QUIET, other_cores=2.0, swapped_bytes=5 << 20))
    measure.keep(busy)
    (kept,), _ = user_devices.read_all()
    assert "contaminated: other processes kept 2.0 cores busy; 5 MiB were swapped" in kept.method
    assert "contaminated" not in measure.measurement(FOUND, HOST).method


@pytest.mark.parametrize(
    ("change", "says"),
    [({"other_cores": 1.0}, "cores busy"), ({"swapped_bytes": 1 << 20}, "swapped"),
     ({"throttle_events": 3}, "throttled 3"), ({"clock_end_hz": 2e9}, "clock fell"), ({}, "")],
)  # fmt: skip
def test_every_contamination_has_its_remark(change: dict, says: str) -> None:
    remarks = replace(QUIET, **change).remarks()
    assert (says in remarks[0]) if says else remarks == ()


def test_a_survey_measures_positive_rates_of_every_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "READ_BYTES", 1 << 24)
    monkeypatch.setattr(measure, "WIDTHS", (256,))
    monkeypatch.setattr(measure, "FORMATS", ("F16", "Q8_0"))
    found = measure.survey(1)
    assert [r.n_threads for r in found.reads] == [1]
    assert found.best_read.median_bytes_per_s > 1e8
    assert {p.format for p in found.products} == {"F16", "Q8_0"}
    assert min(found.fp32_flops, found.int8_ops, found.blas_flops[0][1]) > 1e8
    assert found.step_s > 0
    kernels = found.kernels
    assert kernels is not None
    assert {name for name, *_ in kernels.formats} == {"F16", "Q8_0"}
    assert min(kernels.layer_s, kernels.attention_flops, *kernels.attention_bytes_per_s) > 0
    # decode's own kernels are read passes too: none of them exceeds the bandwidth
    assert max(rate for _, rate in found.streams) <= found.best_read.median_bytes_per_s
    text = measure.text(found, "here")
    assert "GB/s" in text
    assert "Q8_0" in text


def test_rates_of_kernels_are_kept_and_read_back() -> None:
    whole = replace(
        FOUND, streams=(("F16", 44e9), ("Q8_0", 40e9)), layer_s=2e-5,
        attention=(AttentionRate(1, 99, 20e9, 150e9), AttentionRate(4, 99, 10e9, 170e9)),
    )  # fmt: skip
    path = measure.keep(whole)
    (kept,), _ = user_devices.read_all()
    assert user_devices.apply(HOST, (kept,)).kernels == whole.kernels == KernelRates(
        (("F16", 44e9, 300e9), ("Q8_0", 40e9, 900e9)), (20e9, 10e9), 170e9, 2e-5
    )  # fmt: skip
    assert FOUND.kernels is None  # an incomplete survey keeps none
    content = json.loads(path.read_text())
    wrong: tuple[object, ...] = (
        {},
        [],
        {**content["kernels"], "layer_s": -1},
        {**content["kernels"], "formats": [["F16", 1]]},
    )
    for broken in wrong:
        path.write_text(json.dumps({**content, "kernels": broken}))
        assert user_devices.read_all()[1], broken


def test_the_meter_counts_what_was_allocated_and_read(tmp_path: Path) -> None:
    import runner
    from runner import meter

    engine = runner.load(
        runner_tiny.write(tmp_path / "m.gguf", "gemma3", "Q8_0"), n_context=128, n_threads=1, n_batch=32
    )
    try:
        report = meter.run(engine, list(range(40)), 5)
    finally:
        engine.close()
    tensors = engine.weights.tensors
    assert report.weight_bytes == sum(t.data.nbytes for t in tensors.values())
    table = tensors["token_embd.weight"]
    assert report.last.weight_bytes == report.weight_bytes - table.data.nbytes + table.row_bytes
    # two layers of three see 16 tokens, one sees all 45; keys and values of 2 heads x 64, 2 bytes each
    assert report.last.cache_bytes == (16 + 16 + 45) * 2 * 128 * 2
    assert report.cache_allocated_bytes == (48 + 48 + 128) * 2 * 128 * 2
    assert len(report.token_s) == 5
    assert report.tpot_s == pytest.approx(float(np.median(report.token_s)))
    assert 0 < report.resident_bytes <= report.peak_resident_bytes
    assert report.prefill_flops < 40 * report.first.flops
    assert report.document()["contaminated"] == bool(report.remarks)


def test_spread_times_make_a_report_contaminated() -> None:
    from runner import meter

    step = meter.StepCounts(1, 1, 1, 1.0, 1.0)
    steady = meter.Report(1, 1, 1.0, (1.0,) * 8, step, step, 1, 1, 1, 1, 1, 1.0, QUIET)
    assert not meter.with_remarks(steady).contaminated
    wild = replace(steady, token_s=(1.0, 1.0, 2.0, 2.0, 1.0, 2.0, 1.0, 2.0))
    assert "spread by" in meter.with_remarks(wild).remarks[0]
