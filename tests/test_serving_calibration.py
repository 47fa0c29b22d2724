"""The serving calibration: physical, compiled from its readable form, fitted by rules, honest on real rows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from estimators import serving, serving_fit, serving_intervals, serving_measurements
from estimators.serving_fit import MIN_KINDS, MIN_ROWS
from estimators.serving_measurements import Rows
from estimators.serving_model import serve, whole_batch_s
from estimators.serving_rates import (
    COMPILED,
    LATENTS,
    SHARES,
    TIERS,
    interval,
    latents,
    load,
    scaled,
    tier,
)
from planner import predict, rows
from planner.asks import Ask
from tests.test_serving_model import SERVERS, served

DATA = Path(__file__).parent / "data" / "rows" / "serving.csv"


@pytest.fixture(scope="module")
def readable() -> dict:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(COMPILED.with_suffix(".yaml").read_text(encoding="utf-8"), loader)


def test_the_compiled_form_equals_the_readable_one(readable: dict) -> None:
    assert json.loads(COMPILED.read_text(encoding="utf-8")) == json.loads(
        json.dumps(serving_fit.compact(readable))
    )


def test_every_effect_has_its_evidence_and_enough_of_it(readable: dict) -> None:
    count = 0
    for latent in readable["latents"].values():
        for term in latent["terms"]:
            for effect in term["effects"].values():
                assert effect["rows"] >= MIN_ROWS
                assert effect["spread"] >= 0
                count += 1
            assert "model" not in term["by"]
            assert "device" not in term["by"]
    assert count > 50


def test_every_latent_is_physical_for_every_server() -> None:
    for server in SERVERS:
        for engine_version in ("", "0.19.0"):
            labels = {
                **serving.labels_of(served(*server), False, True),
                "version": engine_version or "unstated",
            }
            for name, value in latents(load(), labels).items():
                assert value > 0
                assert name not in SHARES or value < 1


def test_intervals_bracket_the_best_and_widen_for_models_never_seen() -> None:
    for metric in ("ttft", "tpot"):
        for kind in TIERS:
            for ends in load().intervals[metric][kind].values():
                assert 0 < ends["fast"] <= 1 <= ends["slow"]
        seen, *unseen = (load().intervals[metric][kind]["*"] for kind in TIERS)
        for ends in unseen:
            assert ends["slow"] / ends["fast"] > seen["slow"] / seen["fast"]


def test_a_server_is_as_far_from_the_measured_ones_as_its_model_and_device_are() -> None:
    labels = serving.labels_of(served(*SERVERS[0]), False, True)
    known = load().provenance["measured"][0].split("|")
    near = {**labels, **dict(zip(("engine", "model", "family"), known, strict=True))}
    assert tier(load(), near) == "seen"
    assert tier(load(), {**near, "model": "never-measured"}) == "model"
    assert tier(load(), {**near, "family": "never-measured"}) == "device"
    for name, (fast, slow) in ((n, interval(load(), near, n)) for n in ("ttft", "tpot")):
        assert fast <= 1.0 <= slow, name


def test_groups_of_few_models_take_the_interval_of_their_parent() -> None:
    """One model's residuals say on which side it lies, not how far the next one can be."""
    measured = synthetic()
    n = len(measured)
    first = measured.labels[0]["engine"]
    size = np.array([0.5 if x["engine"] == first else 0.1 for x in measured.labels])
    errors = (size, size * np.where(np.arange(n) % 2, 1.0, -1.0))

    def stretch(voters: np.ndarray) -> float:
        held = serving_intervals.intervals(measured, {"model": (errors, voters)})["tpot"]["model"]
        own = next(ends for name, ends in held.items() if name.endswith(f"|{first}"))
        return float(np.log(own["slow"]) / np.log(held["*"]["slow"]))

    few, enough = stretch(np.full(n, "one")), stretch(np.array([str(i) for i in range(n)]))
    assert 1.0 < few < enough
    assert few - 1.0 < 0.4 * (enough - 1.0)


def test_widths_of_servers_never_saw_the_rows_left_out() -> None:
    measured = synthetic()
    n = len(measured)
    odd = np.arange(n) < n // 4
    near = np.where(np.arange(n) % 2, 0.1, -0.1)
    errors = (near, np.where(odd, 2.0, near))
    voters = np.array([str(i) for i in range(n)])
    everything = serving_intervals.intervals(measured, {"seen": (errors, voters)})["tpot"]["seen"]["*"]
    others = serving_intervals.intervals(measured, {"seen": (errors, voters)}, ~odd)["tpot"]["seen"]["*"]
    assert others["rows"] == n - odd.sum()
    assert np.log(others["fast"]) > -0.2 > np.log(everything["fast"])


def test_rows_that_print_one_metric_say_nothing_about_the_other() -> None:
    whole = synthetic()
    half = replace(whole, ttft_s=np.full(len(whole), np.nan))
    ttft, tpot = serving_fit.predicted(half, *serving_fit.solve(half))
    assert np.isnan(ttft).all()
    assert np.median(np.abs(tpot)) < 0.02


def test_rows_of_the_public_file_are_predicted_within_their_intervals() -> None:
    """Held loosely: the file holds odd rows on purpose."""
    file = rows.read(DATA)
    errors, inside = [], []
    for record, priced in zip(file.records, predict.price(file), strict=True):
        assert priced.ok, priced.reason
        measured = float(record.fields["tpot_ms"])
        q = priced.quantities["tpot_ms"]
        errors.append(abs(q.best / measured - 1))
        inside.append(q.low <= measured <= q.high)
    assert np.median(errors) < 0.2
    assert np.mean(inside) > 0.7


def test_a_row_without_worker_counts_says_that_they_are_assumed() -> None:
    found = [rows.ask(r, "serving") for r in rows.read(DATA).records if r.fields["mode"] == "disagg"]
    assert found
    for asked, record in zip(
        found, (r for r in rows.read(DATA).records if r.fields["mode"] == "disagg"), strict=True
    ):
        assert isinstance(asked, Ask)
        assert ("assumed-workers" in asked.flags) == (not record.fields["decode_num_workers"])


def synthetic(n_users: tuple[int, ...] = (2, 4, 8, 16, 32, 64)) -> Rows:
    """Servers whose times follow the model exactly, with layers twice as slow as the prior says."""
    loads, labels = [], []
    for server in SERVERS:
        for users in n_users:
            for prompt in (512, 4096):
                d = served(*server, users=users, prompt=prompt)
                loads.append(serving.load_of(d, None, 1, 1, users, False))
                labels.append({**serving.labels_of(d, False, True), "device": d.machine.devices[0].id})
    truth = {name: scaled(name, serving_fit._raw(name)) for name in LATENTS}
    truth["layer"] *= 2.0
    found = serve(serving.stacked(loads), truth)
    names = np.array([str(i) for i in range(len(loads))])
    n = len(loads)
    return Rows(
        serving.stacked(loads), labels, found.ttft_s, found.tpot_s, names, np.ones(n), np.full(n, np.nan)
    )


def batches() -> Rows:
    """Whole batches by the same engines on the same devices, whose layers are as slow."""
    servers = synthetic()
    truth = {name: scaled(name, serving_fit._raw(name)) for name in LATENTS}
    truth["layer"] *= 2.0
    whole = whole_batch_s(servers.load, truth)
    none = np.full(len(servers), np.nan)
    labels = [{**x, "client": "static", "source": "batches"} for x in servers.labels]
    return replace(servers, labels=labels, ttft_s=none, tpot_s=none, whole_s=np.asarray(whole))


def test_the_fit_recovers_what_made_the_times() -> None:
    measured = synthetic()
    unknowns, x = serving_fit.solve(measured)
    ttft, tpot = serving_fit.predicted(measured, unknowns, x)
    assert np.median(np.abs(tpot)) < 0.02
    assert np.median(np.abs(ttft)) < 0.05
    base = next(v for e, v in zip(unknowns, x, strict=True) if e.latent == "layer" and not e.by)
    assert np.exp(base) > 1.2 * serving_fit.BASES["layer"][0]


def test_batches_alone_say_how_slow_the_layers_of_servers_are() -> None:
    servers, taught = synthetic(), batches()
    untaught, taught_of = (
        np.median(np.abs(serving_fit.predicted(servers, *fitted)[1]))
        for fitted in ((serving_fit.effects(taught), prior(taught)), serving_fit.solve(taught))
    )
    assert untaught > 0.15
    assert taught_of < 0.25 * untaught


def prior(rows: Rows) -> np.ndarray:
    """The unknowns before any row was seen."""
    return np.array([0.0 if e.by else serving_fit._raw(e.latent) for e in serving_fit.effects(rows)])


def test_servers_and_batches_are_one_set_of_rows_of_which_only_servers_are_judged() -> None:
    servers, others = synthetic((2, 8)), batches()
    both = serving_measurements.joined(servers, others)
    assert both.servers.sum() == len(servers)
    assert both.take(~both.servers).whole_s.tolist() == others.whole_s.tolist()
    assert both.load.decode.walk.n_layers.shape == (len(both),)
    ttft, tpot = serving_fit.cross_validate(both, np.array([x["model"] for x in both.labels]))
    for error in (ttft, tpot):
        assert np.isnan(error).tolist() == (~both.servers).tolist()


def test_a_model_left_out_is_left_out_of_the_batches_too(monkeypatch: pytest.MonkeyPatch) -> None:
    both = serving_measurements.joined(synthetic((2, 8)), batches())
    models = np.array([x["model"] for x in both.labels])
    seen: list[set[str]] = []

    def noted(rows: Rows) -> tuple[list[serving_fit.Effect], np.ndarray]:
        seen.append({x["model"] for x in rows.labels})
        return serving_fit.effects(rows), prior(rows)

    monkeypatch.setattr(serving_fit, "solve", noted)
    serving_fit.cross_validate(both, models)
    assert sorted(map(sorted, seen)) == sorted(sorted(set(models) - {m}) for m in set(models))


def mixture() -> tuple[Rows, np.ndarray]:
    """The same servers of models with draft heads, which speculated in a third of their rows and never say; and in
    which rows they did."""
    measured = synthetic(tuple(range(2, 40)))
    able = np.array([x["structure"] == "mla" for x in measured.labels])
    did = able & (np.arange(len(measured)) % 3 == 0)
    truth = {name: scaled(name, serving_fit._raw(name)) for name in LATENTS} | {"drafts": 1.2}
    load = replace(measured.load, drafts=did)
    found = serve(load, truth)
    unsaid = replace(measured.load, may_draft=able)
    return replace(measured, load=unsaid, ttft_s=found.ttft_s, tpot_s=found.tpot_s), did


def test_rows_that_do_not_say_whether_they_speculated_are_told_apart_by_their_times() -> None:
    measured, did = mixture()
    unknowns, x = serving_fit.solve(measured)
    values = {e.latent: v for e, v in zip(unknowns, x, strict=True) if not e.by}
    assert np.exp(values["drafts"]) == pytest.approx(1.2, rel=0.25)
    q = {n: scaled(n, m @ x[at]) for n, (at, m) in serving_fit._columns(measured, unknowns).items()}
    able = measured.load.may_draft
    assert np.median(q["speculates"][able]) == pytest.approx(did[able].mean(), abs=0.15)
    known = replace(measured, load=replace(measured.load, drafts=did, may_draft=np.zeros_like(able)))
    assert np.quantile(np.abs(serving_fit.predicted(known, unknowns, x)[1]), 0.9) < 0.1


def test_the_normal_equations_are_those_of_the_whole_jacobian() -> None:
    measured = synthetic((2, 8))
    unknowns = serving_fit.effects(measured)
    columns = serving_fit._columns(measured, unknowns)
    n = len(measured)
    rng = np.random.default_rng(1)
    slope, pull, r = rng.normal(size=(3 * n, len(LATENTS))), rng.uniform(size=3 * n), rng.normal(size=3 * n)
    whole = np.zeros((3 * n, len(unknowns)))
    for i, name in enumerate(LATENTS):
        at, reach = columns[name]
        whole[:, at] = slope[:, i : i + 1] * np.concatenate([reach, reach, reach])
    curve, downhill = serving_fit._normal(serving_fit._kinds(columns, n), slope, pull, r)
    assert np.allclose(curve, whole.T @ (pull[:, None] * whole))
    assert np.allclose(downhill, whole.T @ (pull * r))


def test_an_architecture_has_its_own_effect_only_beside_a_second_model_or_source() -> None:
    measured = synthetic()
    shapes = {x["shape"] for x in measured.labels}
    assert len(shapes) > 1
    assert not [e for e in serving_fit.effects(measured) if "shape" in e.by]
    twice = [{**x, "source": f"source {i % 2}"} for i, x in enumerate(measured.labels)]
    found = {e.label for e in serving_fit.effects(replace(measured, labels=twice)) if e.by == ("shape",)}
    assert found == shapes


def test_groups_of_one_model_or_of_few_rows_get_no_effect() -> None:
    unknowns = serving_fit.effects(synthetic())
    groups = {(e.by, e.label) for e in unknowns if e.by}
    assert (("engine",), "vllm") in groups  # two models
    assert (("engine",), "trt-llm") not in groups  # one model on one device
    assert all(e.rows >= MIN_ROWS for e in unknowns if e.by)
    few = synthetic((2,))
    assert not {e.label for e in serving_fit.effects(few) if e.by == ("engine",)}
    assert MIN_KINDS == 2


def test_copies_of_a_measurement_share_its_weight() -> None:
    first, each = np.array([1.0, 1.0, 2.0]), np.array([3.0, 3.0, 3.0])
    assert serving_measurements.copies(first, each).tolist() == [0.5, 0.5, 1.0]


def test_rows_of_a_source_that_measured_without_speculation_are_read_so() -> None:
    flags = {"db-dump": set(), "other": set()}
    for record in rows.read(DATA).records:
        asked = rows.ask(record, "serving")
        assert isinstance(asked, Ask)
        origin = "db-dump" if record.fields["source_ref"].startswith("db-dump") else "other"
        flags[origin].add("no-drafts" in asked.flags)
    assert flags == {"db-dump": {True}, "other": {False}}
