"""Laws of a server under load: physics bounds it, waiting only adds, arrays and scalars agree."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from estimators import serving
from estimators.deployment import Deployment, Placement, Settings, Workload
from estimators.errors import CannotPrice
from estimators.estimate import estimate
from estimators.serving_model import capacity, prefill_s, serve
from estimators.serving_rates import latents, load
from estimators.speed import touched_share
from hwdb import catalogue as devices
from hwdb.device import Machine
from modeldb import catalogue as models
from modeldb import schemes

SERVERS = (
    ("llama-3.1-8b-instruct", "bf16", "h100-sxm5-80gb", "vllm", 1),
    ("qwen3-32b", "fp8-block128x128", "h200-sxm-141gb", "sglang", 2),
    ("deepseek-r1", "nvfp4-hf", "b200-sxm-180gb", "trt-llm", 8),
    ("qwen3-235b-a22b", "fp8-block128x128", "b200-sxm-180gb", "vllm", 4),
)


def served(
    model: str = "llama-3.1-8b-instruct", scheme: str = "bf16", gpu: str = "h100-sxm5-80gb", engine: str = "vllm",
    tensor: int = 1, users: int = 16, prompt: int = 1024, output: int = 256, data: int = 1, **work: object,
) -> Deployment:  # fmt: skip
    device = devices.load().get(gpu)
    return Deployment(
        models.load().resolve(model), schemes.get(scheme), Machine("x", (device,) * (tensor * data)), engine, "cuda",
        placement=Placement(tensor_parallel=tensor, data_parallel=data),
        workload=replace(Workload(prompt, output, 0, users, "closed"), **work),  # type: ignore[arg-type]
        settings=Settings(context_tokens=prompt + output),
    )  # fmt: skip


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("users", [2, 16, 128])
def test_no_token_is_faster_than_its_bytes_nor_a_prompt_than_its_operations(
    server: tuple[str, str, str, str, int], users: int
) -> None:
    d = served(*server, users=users)
    first, each, _ = serving.predict(d)
    w, device, n = serving.worker(d), d.machine.devices[0], server[4]
    running = serving.answer(d).n_running
    read = w.walk.total_bytes - w.walk.embedding_bytes - w.walk.tower_bytes - w.walk.expert_bytes
    read += w.walk.expert_bytes * touched_share(w.walk, running)
    # the best is above, the low near
    assert each.low > 0.8 * read / (n * float(device.bandwidth_bytes_per_s or 0))
    assert each.best > read / (n * float(device.bandwidth_bytes_per_s or 0))
    assert first.best > 2.0 * w.walk.active_params * 1024 / (n * w.matrix_flops)


@pytest.mark.parametrize("server", SERVERS)
def test_more_users_never_get_tokens_sooner(server: tuple[str, str, str, str, int]) -> None:
    answers = [serving.predict(served(*server, users=n)) for n in (2, 4, 8, 16, 32, 64, 128)]
    for metric in (0, 1):
        seconds = [a[metric].best for a in answers]
        assert seconds == sorted(seconds)


@pytest.mark.parametrize("server", SERVERS)
def test_longer_prompts_never_answer_sooner(server: tuple[str, str, str, str, int]) -> None:
    firsts = [
        serving.predict(served(*server, users=4, prompt=n))[0].best
        for n in (64, 512, 2048, 8192, 8193, 20000)
    ]
    assert firsts == sorted(firsts)


def test_a_burst_waits_longer_than_a_closed_loop_and_patience_spreads_it() -> None:
    def first(**work: object) -> float:
        return serving.predict(served(users=64, **work))[0].best

    assert first(client="burst") > first(client="closed", prompts_per_user=10)
    assert first(client="closed", prompts_per_user=10) > first(client="closed", prompts_per_user=100)


@pytest.mark.parametrize(("gpu", "cap"), [("h100-sxm5-80gb", 1024), ("a100-sxm4-80gb", 256)])
def test_a_burst_beyond_the_schedulers_cap_runs_in_waves(gpu: str, cap: int) -> None:
    inside, beyond = (
        serving.answer(served(gpu=gpu, users=n, prompt=64, output=64, client="burst")) for n in (cap, 4 * cap)
    )
    assert inside.n_running == beyond.n_running == cap
    assert beyond.ttft_s.best > inside.ttft_s.best


def test_prompts_that_go_first_delay_short_answers_more_than_prompts_that_share_steps() -> None:
    """A mixed step holds one chunk, so no token waits longer than that; whoever prefills first waits for all of it."""
    held = latents(load(), serving.labels_of(served(), False, True))
    asked = serving.load_of(served(users=512, prompt=1024, output=8, client="burst"), None, 1, 1, 512, False)
    mixed, first = (serve(replace(asked, prompts_first=np.bool_(x)), held) for x in (False, True))
    assert first.tpot_s > 2.0 * mixed.tpot_s
    step = first.tpot_s - first.parts["prefill"]
    _, added = prefill_s(asked.prefill, held, 1024.0, asked.chunk_tokens)
    assert mixed.tpot_s <= step + added * asked.chunk_tokens / 1024.0


def test_conversations_wait_longer_per_token_than_answers_of_one_length() -> None:
    """The prompts of others cost an answer of few tokens as much time as one of many."""
    held = latents(load(), serving.labels_of(served(), False, True))
    asked = serving.load_of(served(users=256, client="burst"), None, 1, 1, 256, False)
    even, ragged = (serve(replace(asked, ragged=np.bool_(x)), held) for x in (False, True))
    assert ragged.parts["prefill"] > even.parts["prefill"]


def test_mixed_steps_hold_so_many_prompts_and_more_users_wait_for_the_first_token() -> None:
    """Past what a chunk can feed, time per token stays and the time to the first one grows (Little's law)."""
    few, many = (serving.answer(served(users=n, prompt=16384, output=64)) for n in (64, 128))
    assert many.n_running == few.n_running
    assert many.tpot_s.best == pytest.approx(few.tpot_s.best)
    assert many.ttft_s.best > 1.5 * few.ttft_s.best


def test_a_server_that_drafts_is_no_slower_per_token() -> None:
    d = served("qwen3-32b", "fp8-block128x128", tensor=2)
    plain, drafting = (serving.predict(d, drafts=x)[1] for x in (False, True))
    assert drafting.best < plain.best


def test_a_server_of_which_nobody_says_whether_it_drafts_lies_between() -> None:
    d = served("deepseek-r1", "nvfp4-hf", "b200-sxm-180gb", "trt-llm", 8)
    off, unsaid, on = (
        serving.predict(d, may_draft=m, drafts=s)[1].best
        for m, s in ((False, False), (True, False), (False, True))
    )
    assert on < unsaid < off


def test_a_release_without_draft_heads_is_not_taken_to_draft() -> None:
    for model, drafts in (("deepseek-r1", True), ("kimi-k2.5", False), ("llama-3.1-8b-instruct", False)):
        assert bool(serving.load_of(served(model), None, 1, 1, 16, True).may_draft) == drafts


def test_a_stream_too_thin_to_meet_itself_is_served_like_one_user() -> None:
    thin = served(users=1, client="poisson", requests_per_s=1e-4)
    dense = served(users=1, client="poisson", requests_per_s=4.0)
    alone = serving.answer(thin)
    assert alone.n_running == pytest.approx(1.0)
    assert serving.answer(dense).tpot_s.best > alone.tpot_s.best
    assert serving.answer(dense).ttft_s.best > alone.ttft_s.best


def test_separate_prefill_workers_keep_prompts_out_of_decode_steps() -> None:
    d = served("qwen3-32b", "fp8-block128x128", tensor=2, users=32, prompt=4096)
    held = latents(load(), serving.labels_of(d, False, True))
    together = serve(serving.load_of(d, None, 1, 1, 32, False), held)
    apart = serve(serving.load_of(d, d, 1, 4, 32, False), held)
    assert apart.parts["prefill"] == 0.0
    assert apart.tpot_s < together.tpot_s


def test_caches_that_do_not_fit_make_requests_wait_for_answers() -> None:
    small = served(users=64, prompt=8192, output=512)
    w = serving.worker(small)
    fits = float(capacity(w, 8192.0, 512.0))
    assert 2 < fits < 64
    inside = serving.answer(served(users=int(fits) - 1, prompt=8192, output=512))
    beyond = serving.answer(served(users=4 * int(fits), prompt=8192, output=512))
    assert beyond.n_running <= fits * 1.2
    assert beyond.ttft_s.best > inside.ttft_s.best + 512 * inside.tpot_s.best / 10


def test_many_loads_at_once_are_priced_like_each_alone() -> None:
    deployments = [served(*s, users=n) for s in SERVERS for n in (2, 64)]
    loads = [serving.load_of(d, None, 1, 1, d.workload.n_sequences, False) for d in deployments]
    each = [latents(load(), serving.labels_of(d, False, True)) for d in deployments]
    table = serve(serving.stacked(loads), {k: np.array([q[k] for q in each]) for k in each[0]})
    for i, (one, q) in enumerate(zip(loads, each, strict=True)):
        alone = serve(one, q)
        assert table.ttft_s[i] == pytest.approx(float(alone.ttft_s))
        assert table.tpot_s[i] == pytest.approx(float(alone.tpot_s))


def test_the_parts_of_a_token_add_up_in_an_estimate() -> None:
    d = served(users=32)
    found = estimate(d)
    assert found.tpot_s.best == pytest.approx(sum(t.seconds for t in found.decode_terms))
    assert found.tpot_s.best == pytest.approx(serving.predict(d)[1].best)
    assert found.decode_tokens_per_s.best == pytest.approx(32 / found.tpot_s.best)
    assert any(t.name == "prefill" for t in found.decode_terms)
    assert found.sources
    assert 0 < found.floor_tpot_s < found.tpot_s.best
    assert 0 < found.floor_ttft_s < found.ttft_s.best


def test_one_stream_and_unmeasured_engines_are_not_served_by_this_model() -> None:
    assert serving.applies(served(users=2))
    assert not serving.applies(served(users=2, client="static"))
    assert not serving.applies(served(users=1))
    assert not serving.applies(served(users=8, engine="llama.cpp"))


def test_a_device_without_a_bandwidth_is_refused() -> None:
    d = served()
    blind = replace(d.machine.devices[0], bandwidth_bytes_per_s=None)
    with pytest.raises(CannotPrice, match="not known"):
        serving.predict(d.with_(machine=Machine("x", (blind,))))


def test_a_family_never_measured_under_load_reaches_what_its_single_streams_do() -> None:
    """A prompt alone on a GeForce takes about as long as the calibration of single streams says."""
    for gpu in ("geforce-rtx-5090", "geforce-rtx-4090", "l40s"):
        d = served("qwen3-8b", gpu=gpu, prompt=2048, users=4)
        held = latents(load(), serving.labels_of(d, False, True))
        alone, _ = prefill_s(serving.worker(d), held, 2048.0, 8192.0)
        single = estimate(d.with_(workload=replace(d.workload, n_sequences=1, client="static")))
        assert float(alone) == pytest.approx(single.ttft_s.best, rel=0.35), gpu


def test_wider_tensor_sizes_than_anyone_uses_are_read_as_attention_per_device() -> None:
    w = serving.worker(served("deepseek-r1", "nvfp4-hf", "gb200-per-gpu", "trt-llm", 36))
    assert (w.n_tensor, w.n_data) == (1, 36)


def test_a_model_never_measured_under_load_says_so_and_is_wider() -> None:
    known = serving.predict(served("qwen3-32b", "fp8-block128x128"))[1]
    other = serving.predict(served("qwen3-14b", "fp8-block128x128"))[1]
    assert known.note == ""
    assert "never measured under load" in other.note
    assert other.high / other.low > known.high / known.low
