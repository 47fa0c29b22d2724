"""Who is recommended: lists that differ where they should and that a practitioner would nod at."""

from __future__ import annotations

import re

import pytest

from planner import answer, choice, request, stock
from planner.answer import Answer
from planner.errors import NothingFits
from planner.flags import Flags


def plan(**flags: object) -> Answer:
    return answer.answer(request.build(Flags(**flags)))  # type: ignore[arg-type]


def billions(found: Answer, top: int) -> list[float]:
    return [row.parameters / 1e9 for row in found.rows[:top]]


def test_8_gb_chat_leads_with_a_model_of_7_to_10_billion_at_4_to_6_bits() -> None:
    first = plan(vram="8G").rows[0]
    assert 6.5 <= first.parameters / 1e9 <= 10
    assert 4 <= first.scheme.nominal_bits <= 7
    assert first.engine == "llama.cpp"


def test_8_gb_instant_answers_are_small() -> None:
    first = plan(vram="8G", task="translate").rows[0]
    assert 1 <= first.parameters / 1e9 <= 5


def test_24_gb_chat_offers_the_30b_class_and_a_mixture_of_experts() -> None:
    found = plan(vram="24G")
    assert max(billions(found, 3)) >= 24
    assert any(row.active_parameters < 0.3 * row.parameters for row in found.rows[:6])


def test_lists_for_8_and_24_gb_differ() -> None:
    small, large = plan(vram="8G"), plan(vram="24G")
    assert small.rows[0].model.id != large.rows[0].model.id
    assert large.rows[0].quality.low > small.rows[0].quality.low


def test_two_24_gb_cards_hold_more_than_one() -> None:
    one, two = plan(gpu=["rtx 3090"], task="offline"), plan(gpu=["2xrtx 3090"], task="offline")
    assert max(r.quality.low for r in two.rows) >= max(r.quality.low for r in one.rows)
    assert any(r.placement.pipeline_parallel == 2 for r in two.rows)


def test_host_memory_brings_a_mixture_of_experts_onto_8_gb() -> None:
    found = plan(gpu=["rtx 4060"], ram="64G", model=["qwen3-30b-a3b-instruct-2507"])
    assert found.rows[0].placement.n_cpu_expert_layers > 0
    assert found.rows[0].host_bytes > 5 * 2**30


def test_many_users_on_a_data_centre_card_are_served_by_a_batching_engine() -> None:
    assert {row.engine for row in plan(gpu=["h100"], users=32).rows} == {"vllm"}


def test_apple_chips_may_use_mlx() -> None:
    assert {row.engine for row in plan(gpu=["apple-m4-max-40-core-gpu"], ram="64G").rows} <= {
        "llama.cpp",
        "mlx",
    }
    assert any(
        row.engine == "mlx" for row in plan(gpu=["apple-m4-max-40-core-gpu"], ram="64G", engine=["mlx"]).rows
    )


@pytest.mark.parametrize("task", ["chat", "code", "reasoning", "agent", "offline"])
@pytest.mark.parametrize("vram", ["8G", "24G"])
def test_one_row_per_base_model_and_nobody_odd(task: str, vram: str) -> None:
    rows = plan(vram=vram, task=task).rows
    bases = [row.model.base for row in rows]
    assert len(bases) == len(set(bases))
    assert not [row.model.id for row in rows if stock.ODD.search(row.model.id)]
    assert not [row.model.id for row in rows if re.search(r"(^|-)base(-|$)", row.model.id)]
    assert {row.model.modality[:4] for row in rows} == {"text"}


def test_embedding_models_answer_their_task_only() -> None:
    assert {row.model.modality for row in plan(vram="8G", task="embed").rows} == {"embedding"}


def test_the_rows_form_a_front() -> None:
    rows = plan(gpu=["rtx 4060"]).rows
    assert len(rows) > 4
    for a in rows:
        for b in rows:
            beaten = (
                a is not b
                and a.quality.low > b.quality.low + 5
                and a.turn_s < b.turn_s
                and a.device_bytes < b.device_bytes
            )
            assert not beaten, (a.model.id, b.model.id)


def test_licences_are_respected() -> None:
    rows = plan(vram="24G", license=["permissive"]).rows
    assert rows
    assert {row.model.licence for row in rows} <= stock.PERMISSIVE


def test_a_size_limit_is_respected() -> None:
    assert max(billions(plan(vram="24G", max_size="10B"), 99)) <= 10


def test_wishes_are_respected() -> None:
    rows = plan(gpu=["rtx 3090"], quant=["Q4_K_M"], kv=["q8_0"], engine=["ollama"]).rows
    assert {(r.scheme.id, r.kv_type, r.engine) for r in rows} == {("Q4_K_M", "q8_0", "ollama")}


def test_a_near_miss_names_what_is_missing_and_what_would_help() -> None:
    found = plan(gpu=["rtx 4060"], model=["qwen3-14b"], quant=["Q4_K_M"], context="16k", kv=["f16"])
    assert not found.rows
    miss = found.near[0]
    assert miss.missing_bytes > 0
    assert miss.lacks.startswith("misses by")
    assert any("GPU memory" in fix for fix in miss.fixes)


def test_a_near_miss_by_context_fits_at_the_context_it_offers() -> None:
    flags = {"gpu": ["rtx 4060"], "model": ["qwen3-8b"], "quant": ["Q4_K_M"], "kv": ["f16"]}
    miss = plan(context="32k", **flags).near[0]
    offered = next(fix for fix in miss.fixes if fix.startswith("fits at"))
    context = offered.removeprefix("fits at ").removesuffix(" context")
    assert plan(context=context, **flags).rows
    assert any("cache" in fix for fix in miss.fixes)


def test_a_slow_model_says_which_limit_would_admit_it() -> None:
    found = plan(cpu="amd-ryzen-5-5600", ram="64G", model=["qwen3-32b"], quant=["Q4_K_M"])
    assert not found.rows
    fix = next(f for f in found.near[0].fixes if f.startswith("accepted with --min-tps"))
    admitted = plan(
        cpu="amd-ryzen-5-5600",
        ram="64G",
        model=["qwen3-32b"],
        quant=["Q4_K_M"],
        min_tps=fix.split()[-1],
        max_ttft="1h",
    )
    assert admitted.rows


def test_the_first_row_says_that_it_is_the_best_balance_and_all_rows_give_a_reason() -> None:
    rows = plan(vram="8G").rows
    assert rows[0].reasons[0] == "best balance for chat"
    assert all(row.reasons for row in rows)


def test_a_tight_fit_costs_its_place_and_is_said() -> None:
    assert choice.TIGHT_COST > 0
    rows = plan(gpu=["rtx 4060"], ram="32G", task="offline").rows
    assert any(row.tight for row in rows) or all(
        row.capacity_bytes - row.device_bytes >= choice.TIGHT_SHARE * row.capacity_bytes for row in rows
    )
    for row in rows:
        assert row.tight == ("memory is tight" in row.reasons)


def test_a_model_that_leaves_the_host_nothing_is_tight() -> None:
    rows = plan(gpu=["rtx 4060"], ram="32G", model=["qwen3-next-80b-a3b-instruct"]).rows
    assert not rows or all(row.tight for row in rows if row.host_bytes > 0.85 * 32 * 2**30)


def test_accelerators_run_what_their_software_has_or_are_refused() -> None:
    assert {(r.engine, r.backend) for r in plan(gpu=["gaudi-3"]).rows} == {("vllm", "hpu")}
    assert {r.scheme.family for r in plan(gpu=["aws-inferentia2"]).rows} <= {"bf16", "f16", "fp8"}
    assert {(r.engine, r.backend) for r in plan(gpu=["huawei-ascend-910b"]).rows} == {("lmdeploy", "cann")}
    with pytest.raises(NothingFits, match="no engine known here runs on TPU"):
        plan(gpu=["tpu-v5e"])
