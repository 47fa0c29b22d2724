"""A table of servers and one of them are priced alike."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from estimators import estimate, formats, serving, serving_table
from estimators.estimate import table_of
from estimators.table import DeploymentTable
from estimators.walk import Walk
from hwdb.describe import machine
from modeldb import catalogue, schemes
from planner.deploy import Wish, deployment

CASES = (
    ("qwen3-32b", "bf16", 2),
    ("llama-3.1-8b-instruct", "fp8-per-tensor", 1),
    ("qwen3-30b-a3b", "bf16", 1),
    ("gpt-oss-120b", "mxfp4-hf", 2),
    ("qwen3-30b-a3b", "fp8-block128x128", 1),
)


def _deployments(engine: str):  # type: ignore[no-untyped-def]
    where = machine(gpus=("2xh100",), host_memory_bytes=64 << 30)
    known = catalogue.load()
    return [
        deployment(
            known.resolve(name),
            schemes.get(scheme),
            where,
            Wish(engine=engine, users=24, tensor_parallel=tensor, pipeline_parallel=1),
        )
        for name, scheme, tensor in CASES
    ]


def _stacked(tables: list[DeploymentTable], models: list[str]) -> DeploymentTable:
    kinds = np.array([formats.served_index(schemes.get(scheme)) for _, scheme, _ in CASES])
    walk = Walk(
        **{
            f.name: np.concatenate([np.atleast_1d(getattr(t.walk, f.name)) for t in tables])
            for f in fields(Walk)
        }
    )
    return replace(
        tables[0],
        walk=walk,
        format_class=np.concatenate([np.atleast_1d(t.format_class) for t in tables]),
        tensor_parallel=np.array([t.tensor_parallel for t in tables]),
        n_sequences=24.0,
        extra={
            **tables[0].extra,
            "client": "closed",
            "models": np.array(models, dtype=object),
            "served_formats": kinds,
        },
    )


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trt-llm"])
def test_a_table_of_servers_equals_each_of_them(engine: str) -> None:
    asked = _deployments(engine)
    table = _stacked([table_of(d) for d in asked], [d.model.id for d in asked])
    assert serving_table.applies(table)
    found = estimate.price(table)
    for i, d in enumerate(asked):
        one = estimate.estimate(d)
        assert found.ttft_s[i] == pytest.approx(one.ttft_s.best)
        assert found.tpot_s[i] == pytest.approx(one.tpot_s.best)
        assert found.tpot_low_s[i] == pytest.approx(one.tpot_s.low)
        assert found.ttft_high_s[i] == pytest.approx(one.ttft_s.high)
        assert found.decode_tokens_per_s[i] == pytest.approx(one.decode_tokens_per_s.best)


def test_one_user_is_not_a_server_under_load() -> None:
    table = _stacked([table_of(d) for d in _deployments("vllm")], [name for name, _, _ in CASES])
    assert not serving_table.applies(replace(table, n_sequences=1.0))
    assert not serving_table.applies(replace(table, engine="llama.cpp"))


def test_more_users_never_make_anyone_faster() -> None:
    table = _stacked([table_of(d) for d in _deployments("vllm")], [name for name, _, _ in CASES])
    few, many = (estimate.price(replace(table, n_sequences=float(n))) for n in (8, 64))
    assert np.all(many.tpot_s >= few.tpot_s)
    assert np.all(many.ttft_s >= few.ttft_s)


def test_fp8_in_blocks_is_a_format_of_its_own_under_load_and_nowhere_else() -> None:
    block, tensor = (schemes.get(name) for name in ("fp8-block128x128", "fp8-per-tensor"))
    assert formats.class_index(block) == formats.class_index(tensor)
    names = [formats.SERVED[formats.served_index(s)] for s in (block, tensor)]
    assert names == ["fp8-block", "fp8"]
    assert {formats.unblocked(name) for name in names} == {"fp8"}
    asked = _deployments("vllm")
    assert [serving.labels_of(d, False, True)["format"] for d in asked] == [
        "f16", "fp8", "f16", "mxfp4", "fp8-block",
    ]  # fmt: skip
