"""Rows of serving.csv: how many devices and copies of a server their columns mean."""

from __future__ import annotations

from planner import row_serving, rows
from planner.asks import Ask


def serving(**fields: str) -> dict[str, str]:
    return {**dict.fromkeys(rows.READS["serving"], ""), "pp_size": "1", **fields}


def ask(**fields: str) -> Ask:
    asked = row_serving.ask(
        serving(
            **{
                "engine": "trtllm", "model_canonical": "Qwen/Qwen3-32B", "gemm_quant_mode": "fp8",
                "hardware_canonical": "nvidia-h100-80gb-sxm", "isl": "1000", "osl": "100", **fields,
            }
        )
    )  # fmt: skip
    assert isinstance(asked, Ask)
    return asked


def test_experts_over_more_devices_than_attention_repeat_the_attention() -> None:
    group = row_serving._group(serving(tp_size="2", moe_tp_size="4", moe_ep_size="1"), "")
    assert (group.n_devices, group.tensor, group.data) == (4, 2, 2)


def test_users_beyond_one_servers_batch_are_on_copies_of_it() -> None:
    asked = ask(
        id="x_c416_tp2", source_ref="silicon_concurrency=416", batch_size="13", tp_size="2", mode="agg"
    )
    assert (asked.workers, asked.concurrency, asked.deployment.workload.n_sequences) == (32, 416, 13)
    alone = ask(id="x_c16_tp2", source_ref="silicon_concurrency=16", batch_size="16", tp_size="2", mode="agg")
    assert (alone.workers, alone.concurrency, alone.deployment.workload.n_sequences) == (1, 16, 16)


def test_runs_with_eight_bit_weights_keep_an_eight_bit_cache() -> None:
    asked = ask(id="x_c16_tp2", source_ref="silicon_concurrency=16", batch_size="16", tp_size="2", mode="agg")
    assert asked.deployment.settings.kv_type_k == "fp8"


def test_tensor_sizes_that_split_no_matrix_are_whole_systems_of_unsaid_workers() -> None:
    """GB200 racks entered as one server of 12, 20, 36 or 72 devices."""
    for size in ("12", "20", "36", "72"):
        found = ask(id=f"x_c16_tp{size}", source_ref="silicon_concurrency=16", tp_size=size, mode="agg")
        assert found.prefill is not None, size
        assert {"disaggregated", "assumed-workers"} <= set(found.flags)
        assert found.n_devices == int(size)
    found = ask(id="x_c16_tp8", source_ref="silicon_concurrency=16", tp_size="8", mode="agg")
    assert found.prefill is None


def test_fp8_that_an_engine_made_itself_has_one_scale_per_tensor_and_a_release_in_blocks_keeps_them() -> None:
    row = {"id": "x_c16_tp2", "source_ref": "silicon_concurrency=16", "batch_size": "16", "tp_size": "2"}
    assert ask(**row, mode="agg").deployment.scheme.id == "fp8-per-tensor"
    stated = {"gemm_quant_mode": "fp8_block"}, {"model_canonical": "Qwen/Qwen3-32B-FP8"}, {"engine": "sglang"}
    released = {"model_canonical": "deepseek-ai/DeepSeek-R1"}
    for change in (*stated, released):
        assert ask(**row, mode="agg", **change).deployment.scheme.id == "fp8-block128x128", change
