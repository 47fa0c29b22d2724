"""What the labels of measurement files are taken to mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from planner import labels, names, row_serving, row_speed, rows
from planner.asks import Refusal

DATA = Path(__file__).parent / "data" / "rows"


@pytest.mark.parametrize(
    ("label", "engine", "model", "scheme"),
    [
        ("Q4_K_M", "llama.cpp", "qwen3-8b", "Q4_K_M"),
        ("Q4_K - Medium", "ik_llama.cpp", "", "Q4_K_M"),
        ("Q2_K - Medium", "ik_llama.cpp", "", "Q2_K"),
        ("Q4_K_M (ollama default, not printed)", "ollama", "", "Q4_K_M"),
        ("Q4_K_M?", "llama.cpp", "", "Q4_K_M"),
        ("IQ3_K - 3.4325 bpw", "ik_llama.cpp", "", "IQ3_K"),
        ("UD-Q4_K_XL", "llama.cpp", "", "UD-Q4_K_XL"),
        ("FP16/BF16", "vllm", "", "bf16"),
        ("F16", "llama.cpp", "", "F16"),
        ("FP8", "vllm", "llama-3.1-70b", "fp8-per-tensor"),
        ("FP8", "vllm", "qwen3-32b", "fp8-block128x128"),
        ("FP8 (native)", "ktransformers", "minimax-m2.1", "fp8-block128x128"),
        ("AWQ-INT4", "sglang", "", "awq-4bit-g128"),
        ("GPTQ-Int8", "transformers", "", "gptq-8bit-g128"),
        ("INT4", "transformers", "", "bnb-nf4"),
        ("INT4", "exllamav2", "", "gptq-4bit-g128"),
        ("4bit", "mlx", "", "mlx-4bit-g64"),
        ("MLX-5bit g32", "mlx", "", "mlx-5bit-g32"),
        ("MXFP4", "llama.cpp", "gpt-oss-20b", "MXFP4_MOE"),
        ("MXFP4", "vllm", "gpt-oss-20b", "mxfp4-hf"),
        ("MXFP4 (F16 non-experts)", "llama.cpp", "gpt-oss-20b", "F16+MXFP4"),
        ("Q4_K_M", "llama.cpp", "gpt-oss-20b", "MXFP4_MOE"),  # its files keep MXFP4 experts
        ("EXL2 3.0 bpw", "exllamav2", "", "exl2-3bpw"),
        ("bnb.nf4-dq", "litgpt", "", "bnb-nf4-dq"),
    ],
)
def test_a_quantization_label_means_one_scheme(label: str, engine: str, model: str, scheme: str) -> None:
    found = names.quant(label, engine, model)
    assert not isinstance(found, Refusal)
    assert found.id == scheme


def test_an_unknown_quantization_is_refused_not_guessed() -> None:
    assert isinstance(names.quant("unknown, may not work", "ik_llama.cpp"), Refusal)
    assert isinstance(names.quant("", "vllm"), Refusal)


def test_every_engine_of_the_fixtures_is_known() -> None:
    for name in ("speed", "memory", "serving"):
        for record in rows.read(DATA / f"{name}.csv").records:
            assert labels.engine(record.fields["engine"]) is not None, record.fields["engine"]


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("", ("f16", "f16")),
        ("bf16/fp16", ("bf16", "bf16")),
        ("q8_0/f16", ("q8_0", "f16")),
        ("q8_0 (MLA mode 3)", ("q8_0", "q8_0")),
        ("fp8_e4m3", ("fp8", "fp8")),
        ("iq4_nl/f16", ("iq4_nl", "f16")),
    ],
)
def test_cache_types(text: str, pair: tuple[str, str]) -> None:
    assert labels.kv_types(text) == pair


@pytest.mark.parametrize(
    ("date", "low", "high"),
    [
        ("2024", 2024.5, 2024.5),
        ("2024-05", 2024.3, 2024.42),
        ("2025-12-31", 2025.99, 2026.0),
        ("2025-2026", 2026.0, 2026.0),
    ],
)
def test_dates_become_years(date: str, low: float, high: float) -> None:
    year = labels.year(date)
    assert year is not None
    assert low <= year <= high


def test_no_date_is_no_year() -> None:
    assert labels.year("") is None


@pytest.mark.parametrize(
    ("notes", "yes"),
    [
        ("TP8, MTP speculative decoding with 1 draft token ON", True),
        ("--speculative-algorithm EAGLE3; SPECULATIVE DECODING on", True),
        ("code prompt, no speculative decoding, mean of 5", False),
        ("Qwopus3.6-35B-A3B-Coder-MTP-GGUF", False),
        ("", False),
    ],
)
def test_speculative_rows_are_told_by_their_remarks(notes: str, yes: bool) -> None:
    assert labels.speculative(notes) is yes


def row(**fields: str) -> dict[str, str]:
    return {**dict.fromkeys(rows.READS["speed"], ""), **fields}


@pytest.mark.parametrize(
    ("notes", "engine", "devices", "sizes"),
    [
        ("", "llama.cpp", 4, (1, 4, 1, 1)),  # layers in turn
        ("", "transformers", 2, (1, 2, 1, 1)),
        ("", "vllm", 4, (4, 1, 1, 1)),
        ("serve cmd: vllm serve X -tp 4 --enable-expert-parallel", "vllm", 4, (4, 1, 4, 1)),
        ("max_num_batched_tokens 2048, DP2+EP", "vllm", 2, (1, 1, 2, 2)),
        ("--tp-size 8 --dp-size 8 --enable-dp-attention", "sglang", 8, (1, 1, 8, 8)),
        ("-sm row", "llama.cpp", 2, (2, 1, 1, 1)),
        ("TP8", "vllm", 1, (1, 1, 1, 1)),
    ],
)
def test_several_devices_are_split_as_the_row_says(
    notes: str, engine: str, devices: int, sizes: tuple[int, int, int, int]
) -> None:
    assert row_speed._parallel(notes, engine, devices) == sizes


@pytest.mark.parametrize(
    ("notes", "batch", "client", "users", "prompts"),
    [
        ("vllm bench serve; 1000 requests, all sent at once (no concurrency cap)", "", "burst", 1000, 1),
        ("vllm bench serve; 100 requests, max concurrency 4; avg in/out", "4", "closed", 4, 25),
        ("max concurrency 16, 160 prompts; TP8+EP", "16", "closed", 16, 10),
        ("300 ShareGPT-derived requests, arrivals 10 sessions/s, max_num_seqs 128", "128", "poisson", 128, 2),
        ("llama-batched-bench S_TG aggregate over B sequences", "8", "static", 8, 1),
        (
            "max-throughput offline trtllm-bench (all requests queued, inflight batching)",
            "",
            "burst",
            1000,
            1,
        ),
    ],
)
def test_who_sends_the_requests(notes: str, batch: str, client: str, users: int, prompts: int) -> None:
    fields = row(notes=notes, batch_or_concurrency=batch, input_tokens="128", output_tokens="128")
    work, assumed, metric = row_speed.workload(fields, "tpot_ms", "vllm")
    assert (work.client, work.n_sequences, work.prompts_per_user) == (client, users, prompts)
    assert not assumed
    assert metric == "tpot_ms"


@pytest.mark.parametrize(
    ("engine", "batch", "metric", "client"),
    [
        ("trt-llm", "", "output_throughput_tps", "burst"),
        ("trt-llm", "8", "output_throughput_tps", "static"),
        ("trt-llm", "", "ttft_ms", "static"),
        ("transformers", "", "output_throughput_tps", "static"),
    ],
)
def test_tensorrt_llm_queues_everything_where_a_throughput_names_no_batch(
    engine: str, batch: str, metric: str, client: str
) -> None:
    fields = row(notes="TP4", batch_or_concurrency=batch, input_tokens="128", output_tokens="128")
    work = row_speed.workload(fields, metric, engine)[0]
    assert work.client == client
    assert work.n_sequences == (row_speed.BENCH_REQUESTS if client == "burst" else max(1, int(batch or 1)))


def test_a_decode_rate_over_the_total_time_is_an_output_throughput() -> None:
    fields = row(notes="tokens/total time (includes prefill)", output_tokens="300")
    assert row_speed.workload(fields, "decode_tps", "llama.cpp")[2] == "output_throughput_tps"


def serving(**fields: str) -> dict[str, str]:
    return {**dict.fromkeys(rows.READS["serving"], ""), **fields}


@pytest.mark.parametrize(
    ("tp", "dp", "moe_tp", "moe_ep", "group"),
    [
        ("8", "1", "8", "1", row_serving.Group(8, 8, 1, 1, 1)),
        ("64", "1", "8", "8", row_serving.Group(8, 8, 1, 8, 1)),  # stored as a product
        ("1", "64", "8", "8", row_serving.Group(8, 1, 1, 8, 8)),
        ("4", "4", "1", "16", row_serving.Group(4, 1, 1, 4, 4)),
        ("1", "8", "1", "8", row_serving.Group(8, 1, 1, 8, 8)),
        ("4", "0", "0", "0", row_serving.Group(4, 4, 1, 1, 1)),
    ],
)
def test_parallel_sizes_stored_as_products_are_undone(
    tp: str, dp: str, moe_tp: str, moe_ep: str, group: row_serving.Group
) -> None:
    fields = serving(tp_size=tp, attention_dp_size=dp, moe_tp_size=moe_tp, moe_ep_size=moe_ep, pp_size="1")
    assert row_serving._group(fields, "") == group


def test_sizes_spelled_in_ids_agree_with_the_columns() -> None:
    import re

    checked = 0
    for record in rows.read(DATA / "serving.csv").records:
        spelled = re.search(r"_tp(\d+)(?:_0)?_ep(\d+)", record.fields["id"])
        if spelled and record.fields["mode"] == "agg":
            assert row_serving._group(record.fields, "").n_devices == int(spelled.group(1))
            checked += 1
    assert checked >= 3


def test_concurrency_is_that_of_the_system_not_of_one_attention_group() -> None:
    fields = serving(id="x_c256_tp4_ep4", source_ref="silicon_concurrency=256", batch_size="16")
    assert row_serving.concurrency(fields) == 256
    assert row_serving.concurrency(serving(batch_size="16")) == 16
    assert row_serving.concurrency(serving()) is None
