"""Recordings of benchmark tools become the deployments that were measured, or say why they cannot."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from planner import imports
from planner.drafts import Hints
from planner.errors import EnvironmentFailed, UsageError

DATA = Path(__file__).parent / "data" / "imports"
CARD = Hints(gpus=(1, "rtx 4090"))


def read(name: str, hints: Hints | None = None) -> imports.Imported:
    return imports.read(DATA / name, hints)


def test_llama_bench_json_names_device_model_scheme_and_keeps_samples() -> None:
    prefill, decode = read("llama_bench.json").rows
    d = decode.ask.deployment
    assert (d.machine.devices[0].id, d.backend, d.engine) == ("geforce-rtx-4080", "cuda", "llama.cpp")
    assert (d.model.id, d.scheme.id) == ("qwen2.5-7b-instruct", "Q4_K_M")
    assert (d.workload.output_tokens, d.workload.cached_tokens, d.settings.flash_attention) == (128, 0, True)
    assert (prefill.ask.metric, decode.ask.metric) == ("prefill_tps", "decode_tps")
    assert (prefill.ask.deployment.workload.prompt_tokens, prefill.date) == (512, "2025-04-24")
    assert len(decode.samples) == 5
    assert 0 < decode.noise < 0.01


def test_json_lines_and_csv_say_the_same_as_json() -> None:
    json_rows, csv_rows = read("llama_bench.json").rows, read("llama_bench.csv").rows
    assert [r.ask for r in csv_rows] == [r.ask for r in json_rows]
    assert [r.value for r in csv_rows] == [r.value for r in json_rows]
    lines = read("llama_bench.jsonl").rows
    assert [r.ask.deployment.with_(settings=None) for r in lines] == [
        r.ask.deployment.with_(settings=None) for r in json_rows
    ]


def test_the_pasted_table_reads_like_the_json() -> None:
    found = read("llama_bench.md", Hints(model="qwen2.5-7b-instruct"))
    assert [(r.ask.metric, r.value) for r in found.rows] == [
        ("prefill_tps", 7100.0), ("decode_tps", 118.88), ("decode_tps", 112.31),
    ]  # fmt: skip
    assert found.rows[2].ask.deployment.workload.cached_tokens == 4096
    assert found.rows[0].ask.deployment.machine.devices[0].id == "geforce-rtx-4080"
    assert found.rows[0].settings != found.rows[1].settings
    assert "pg" in found.refused[0][1]


def test_a_table_that_could_be_several_models_asks_for_the_name() -> None:
    found = read("llama_bench.md")
    assert not found.rows
    assert "mimo-7b-rl" in found.refused[0][1]
    assert "--model" in found.refused[0][1]


def test_rows_shorter_than_the_header_are_refused() -> None:
    found = read("llama_bench_misaligned.csv")
    assert not found.rows
    assert all("fields where the header has" in why for _, why in found.refused)


def test_vllm_alone_gives_both_phases_and_under_load_only_the_tokens() -> None:
    alone = read("vllm_alone.json", CARD)
    assert [(r.ask.metric, r.value) for r in alone.rows] == [("tpot_ms", 17.81), ("ttft_ms", 118.1)]
    work = alone.rows[0].ask.deployment.workload
    assert (work.prompt_tokens, work.output_tokens, work.n_sequences) == (1024, 256, 1)
    assert alone.rows[0].date == "2025-11-03"
    loaded = read("vllm_sixteen.json", CARD)
    work = loaded.rows[0].ask.deployment.workload
    assert [r.ask.metric for r in loaded.rows] == ["tpot_ms"]
    assert (work.client, work.n_sequences) == ("closed", 16)
    assert "waited" in loaded.refused[0][1]


def test_sglang_file_holds_several_runs_and_speculation_is_refused() -> None:
    found = read("sglang.jsonl", CARD)
    assert [(r.where, r.ask.metric) for r in found.rows] == [
        ("line 1", "tpot_ms"), ("line 1", "ttft_ms"), ("line 2", "tpot_ms"),
    ]  # fmt: skip
    d = found.rows[0].ask.deployment
    assert (d.engine, d.model.id) == ("sglang", "llama-3.1-8b-instruct")
    assert any(where == "line 3" and "speculative" in why for where, why in found.refused)


def test_guidellm_reads_the_successful_branch_and_tokens_without_the_first() -> None:
    found = read("guidellm.json", CARD)
    assert [(r.ask.metric, r.value) for r in found.rows] == [
        ("tpot_ms", 17.7), ("ttft_ms", 66.0), ("tpot_ms", 20.5),
    ]  # fmt: skip
    assert found.rows[2].ask.deployment.workload.n_sequences == 8
    assert found.rows[0].date == "2025-11-03"


def test_guidellm_of_an_unknown_version_is_refused(tmp_path: Path) -> None:
    report = json.loads((DATA / "guidellm.json").read_text())
    report["metadata"]["version"] = 9
    (tmp_path / "x.json").write_text(json.dumps(report))
    with pytest.raises(UsageError, match="version 9"):
        imports.read(tmp_path / "x.json", CARD)


def test_rows_in_the_layout_of_speed_csv_are_read() -> None:
    found = read("rows.csv")
    assert [r.ask.metric for r in found.rows] == ["decode_tps", "prefill_tps", "output_throughput_tps"]
    assert found.refused == (("line 5", imports.UNFIT["speculative"]),)


def test_a_file_keeps_its_hash() -> None:
    found = read("llama_bench.json")
    assert found.sha256 == hashlib.sha256((DATA / "llama_bench.json").read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["vllm_alone.json", "guidellm.json", "sglang.jsonl"])
def test_a_file_that_names_no_device_asks_for_it(name: str) -> None:
    with pytest.raises(UsageError, match="does not say on which device") as caught:
        read(name)
    assert "--gpu" in caught.value.hint


def changed(tmp_path: Path, **values: object) -> Path:
    """The JSON example with other values in its second test."""
    record = json.loads((DATA / "llama_bench.json").read_text())[1] | values
    path = tmp_path / "bench.json"
    path.write_text(json.dumps([record]))
    return path


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"model_n_params": 8030261312}, "not the same model"),
        ({"model_size": 8098525888}, "not the same quantization"),
        ({"n_gpu_layers": 20}, "host memory"),
        ({"n_cpu_moe": 4}, "-ncmoe"),
        ({"no_kv_offload": True}, "-nkvo"),
        ({"tensor_buft_overrides": "exps=CPU"}, "-ot"),
        ({"contaminated": True, "remarks": ["clock throttled"]}, "clock throttled"),
        ({"embeddings": True}, "embedding"),
        ({"engine": "somebody else"}, "not known"),
        ({"n_prompt": 512}, "pg"),
        ({"avg_ts": None}, "avg_ts"),
        ({"model_filename": "nobody-13B-Q4_K_M.gguf", "model_n_params": 1}, "no model"),
        (
            {"gpu_info": "NVIDIA GeForce RTX 4080, NVIDIA GeForce RTX 4080", "tensor_split": "3.00/1.00"},
            "-ts",
        ),
    ],
)
def test_a_record_that_cannot_be_compared_says_why(tmp_path: Path, values: dict, why: str) -> None:
    found = imports.read(changed(tmp_path, **values))
    assert not found.rows
    assert why in found.refused[0][1]


def test_an_unknown_device_is_asked_for_and_can_be_named(tmp_path: Path) -> None:
    path = changed(tmp_path, gpu_info="Voodoo 2")
    with pytest.raises(UsageError, match="Voodoo 2"):
        imports.read(path)
    named = imports.read(path, Hints(gpus=(1, "rtx 4080")))
    assert named.rows[0].ask.deployment.machine.devices[0].id == "geforce-rtx-4080"


def test_settings_are_read(tmp_path: Path) -> None:
    path = changed(
        tmp_path, type_k="q8_0", type_v="q4_0", flash_attn=0, n_ubatch=256, n_depth=4096, brand_new_key=[1],
        gpu_info="NVIDIA GeForce RTX 4080, NVIDIA GeForce RTX 4080", split_mode="layer",
    )  # fmt: skip
    d = imports.read(path).rows[0].ask.deployment
    assert (d.settings.kv_type_k, d.settings.kv_type_v) == ("q8_0", "q4_0")
    assert (d.settings.flash_attention, d.settings.micro_batch_tokens) == (False, 256)
    assert (d.workload.cached_tokens, d.placement.pipeline_parallel) == (4096, 2)


def test_rows_with_other_settings_are_no_repeats(tmp_path: Path) -> None:
    first = imports.read(changed(tmp_path)).rows[0]
    second = imports.read(changed(tmp_path, n_batch=1024)).rows[0]
    third = imports.read(changed(tmp_path, build_commit="abc")).rows[0]
    assert len({first.settings, second.settings, third.settings}) == 3
    assert imports.read(changed(tmp_path, avg_ts=1.0)).rows[0].settings == first.settings


def test_a_cpu_run_is_of_the_cpu(tmp_path: Path) -> None:
    path = changed(tmp_path, backends="CPU", gpu_info="", n_threads=8, avg_ts=11.0, samples_ts=[])
    d = imports.read(path).rows[0].ask.deployment
    assert (d.backend, d.settings.n_threads) == ("cpu", 8)
    assert d.machine.host is not None
    assert d.machine.host.id == "amd-ryzen-7-7800x3d"
    assert not imports.read(path, CARD).rows[0].ask.deployment.machine.devices


BROKEN = (
    b"", b"   \n", b"{", b"[{]", b'{"a": 1}\n{"b": ', b"\xff\xfe\x00", b"null", b"[1, 2]", b"{}", b"[]",
    b"hello", b"| model | t/s |\n", b"build_commit,x\n", b"[" * 100_000,
)  # fmt: skip
USELESS = (
    b'[{"n_prompt": 1e400, "n_gen": [], "avg_ts": "x"}]', b'[{"n_prompt": {}, "n_gen": null, "avg_ts": NaN}]',
    b'{"benchmarks": [{"metrics": {"x": 3}}]}',
)  # fmt: skip


@pytest.mark.parametrize("content", BROKEN)
def test_broken_content_is_one_clear_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="broken") as caught:
        imports.read(path, CARD)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("content", USELESS)
def test_records_without_numbers_are_refused_one_by_one(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "useless"
    path.write_bytes(content)
    found = imports.read(path, CARD)
    assert not found.rows
    assert found.refused


def test_a_missing_file_is_the_environments_fault(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailed, match="cannot read"):
        imports.read(tmp_path / "none.json")
