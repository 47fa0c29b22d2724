"""Terms of the runner's prompts and steps: the physics that they claim."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import runner_tiny

from estimators import reference, reference_prompt, reference_step
from estimators.deployment import Deployment, Settings, Workload
from hwdb.device import Device, KernelRates, Machine
from modeldb import catalogue, readers, schemes
from planner import verify
from planner.errors import UsageError
from runner import meter, sampled, sampled_prompt

KERNELS = KernelRates(
    (("Q4_K", 40e9, 1200e9), ("Q6_K", 40e9, 900e9)), (13e9, 11e9), 250e9, reference_step.NEAR_LAYER_S
)
HOST = Device("cpu", "Some CPU", "AMD", "cpu", memory_bytes=64 << 30, bandwidth_bytes_per_s=42e9, fp32_flops=500e9,
              int8_ops=1300e9, cpu_cores=2, basis="measured", kernels=KERNELS)  # fmt: skip


def terms(name: str, n_prompt: int, kernels: KernelRates = KERNELS) -> dict[str, dict[str, float]]:
    machine = Machine("here", host=replace(HOST, kernels=kernels))
    model = catalogue.load().resolve(name)
    settings = Settings(context_tokens=n_prompt + 1)
    work = Workload(n_prompt, 1)
    return reference.terms(
        Deployment(
            model, schemes.get("Q4_K_M"), machine, reference.ENGINE, "cpu", workload=work, settings=settings
        )
    )


def test_an_expert_of_many_tokens_costs_what_they_cost_alone_and_of_few_what_its_weights_cost() -> None:
    of = lambda mean: reference_prompt._expert_tokens(mean, 6.0, 30.0, 11.0)  # noqa: E731
    # a third of a block is half empty
    assert of(1200.0) == pytest.approx(30 + 11 * (1200 + 2) / 12, rel=0.02)
    assert of(0.01) == pytest.approx(0.01 * 6.0, rel=0.05)  # hardly more than one token: read once
    costs = [of(m) for m in (0.1, 1, 4, 16, 64, 256)]
    assert costs == sorted(costs)
    each = [c / m for c, m in zip(costs, (0.1, 1, 4, 16, 64, 256), strict=True)]
    assert each[2:] == sorted(each[2:], reverse=True)  # the more tokens, the less for each


def test_more_experts_of_the_same_work_take_longer_because_each_gets_fewer_tokens() -> None:
    short, long = terms("qwen3-235b-a22b", 128), terms("qwen3-235b-a22b", 512)
    assert long["prefill"]["experts"] < 2.5 * short["prefill"]["experts"]  # for four times the tokens
    short, long = terms("qwen3-8b", 128), terms("qwen3-8b", 512)
    assert long["prefill"]["products"] > 2.5 * short["prefill"]["products"]


def test_attention_of_a_prompt_grows_with_its_square_unless_a_window_holds_it() -> None:
    whole = [terms("qwen3-8b", n)["prefill"]["attention"] for n in (8192, 16384)]
    assert whole[1] / whole[0] == pytest.approx(4, rel=0.03)
    mostly = [terms("gemma-3-1b-it", n)["prefill"]["attention"] for n in (8192, 16384)]
    assert mostly[1] / mostly[0] < 3.5


def test_wide_heads_spend_less_of_their_time_on_softmax() -> None:
    model = lambda head_dim: SimpleNamespace(  # noqa: E731
        architecture="llama",
        blocks=[SimpleNamespace(mixers=[reference_prompt.Attention(8, 8, head_dim, head_dim)])],
    )
    narrow, usual, wide = (reference_prompt._attention_s(model(n), 4096, 1e12) for n in (64, 128, 256))  # type: ignore[arg-type]
    assert usual < 2 * narrow
    assert wide < 2 * usual
    # what was timed: the marginal rate of heads of 128, and little for tiles
    assert usual == pytest.approx(4096 * 8 * 2048 * 512 / 1e12, rel=0.08)


def test_numbers_cost_more_where_cores_share_no_cache() -> None:
    far = terms("qwen3-8b", 512, replace(KERNELS, layer_s=2 * reference_step.NEAR_LAYER_S))
    near = terms("qwen3-8b", 512)
    assert far["prefill"]["vectors"] == pytest.approx(1.5 * near["prefill"]["vectors"])
    # twice as long, and twice as far
    assert far["decode"]["layers"] == pytest.approx(4 * near["decode"]["layers"])
    assert far["prefill"]["products"] == near["prefill"]["products"]


def test_a_step_of_latent_attention_is_bound_by_its_heads_and_a_plain_one_by_its_cache() -> None:
    latent = [terms("deepseek-v3", n)["decode"]["cache"] for n in (1000, 2000)]
    flops = 61 * 128 * 2 * (2 * 512 + 64)
    assert latent[1] - latent[0] == pytest.approx(
        1000 * flops / (reference_step.LATENT_SHARE * 250e9), rel=0.01
    )
    plain = terms("llama-3.1-8b-instruct", 1000)["decode"]["cache"]
    assert plain == pytest.approx(1000.5 * 32 * 8 * 128 * 4 / 11e9, rel=0.01)  # four heads per key: as timed


def counted_waits(name: str, folder):
    """(a tiny model, the barriers of its layers in the runner's program of one token)."""
    import runner

    path = runner_tiny.write(folder / "m.gguf", name, "Q8_0")
    engine = runner.load(path, n_context=64, n_threads=1)
    marks = [m.row for m in engine._one.marks]
    counted = sum(wait for _, _, wait in engine._one.rows[marks[0] : marks[-1]])
    engine.close()
    return readers.read(str(path), offline=True)[0], counted


@pytest.mark.parametrize("name", ["llama", "qwen3", "qwen3moe", "qwen2moe", "gpt-oss", "lfm2", "falcon-h1",
                                  "granite-h", "qwen35", "deepseek2"])  # fmt: skip
def test_barriers_of_a_layer_are_those_of_the_runner(name: str, tmp_path) -> None:
    pytest.importorskip("numba")
    model, counted = counted_waits(name, tmp_path)
    expected = sum(map(reference_step.waits, model.blocks))
    assert expected == pytest.approx(counted, rel=0.2)


@pytest.mark.parametrize(
    ("name", "real"), [("gemma3n", "gemma-3n-e2b-it"), ("gemma4-shared", "gemma-4-e2b-it")]
)
def test_what_a_layer_has_beside_attention_and_its_feed_forward_waits_too(
    name: str, real: str, tmp_path
) -> None:
    pytest.importorskip("numba")
    model, counted = counted_waits(name, tmp_path)
    each = [reference_step.waits(block) for block in catalogue.load().get(real).blocks]
    assert sum(each) / len(each) == pytest.approx(counted / model.n_layers, rel=0.2)


@pytest.mark.parametrize("window", [0, 5, 64])
@pytest.mark.parametrize(("position", "n"), [(0, 1), (0, 40), (3, 9), (70, 8)])
def test_pairs_that_see_each_other_are_counted_without_a_loop(window: int, position: int, n: int) -> None:
    one_by_one = sum(meter.visible(window, position + i + 1) for i in range(n))
    assert sampled_prompt._seen(window, position, n) == one_by_one


def test_a_cache_beyond_memory_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        verify, "machine_for", lambda threads, formats=(): (Machine("here", host=HOST), (), ())
    )
    monkeypatch.setattr(sampled, "load", lambda *a, **k: pytest.fail("it was made"))
    asked = verify.question("llama-3.3-70b-instruct", None, n_prompt=1 << 30, quick=True)
    with pytest.raises(
        UsageError, match=r"of cache for the layers that would run do not fit: .* may be used"
    ):
        verify.verify(asked)


def test_caches_that_are_told_are_those_that_are_made() -> None:
    pytest.importorskip("numba")
    for name, kv in (
        ("llama-3.2-1b-instruct", "f16"),
        ("gemma-3-1b-it", "q8_0"),
        ("deepseek-v2-lite", "f16"),
    ):
        model, held = catalogue.load().resolve(name), schemes.get("Q4_0")
        told = sampled.cache_bytes(model, held, 4096, 16, kv)
        sample = sampled.load(model, held, 4096, n_batch=2, n_threads=1, cache_type=kv, n_filled=16)
        made = sample.engine.cache.allocated_bytes
        sample.close()
        assert told == pytest.approx(made, rel=0.02)


def test_a_metered_prompt_tells_how_far_it_is(tmp_path) -> None:
    pytest.importorskip("numba")
    import runner

    path = runner_tiny.write(tmp_path / "m.gguf", "qwen3", "Q8_0")
    engine = runner.load(path, n_context=64, n_batch=16, n_threads=1)
    heard: list[tuple[int, int]] = []
    told = meter.run(engine, list(range(40)), 2, told=lambda done, total: heard.append((done, total)))
    assert heard == [(16, 40), (32, 40), (40, 40)]
    assert told.n_prompt == 40
    engine.close()
