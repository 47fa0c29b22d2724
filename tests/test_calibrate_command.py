"""`plan calibrate`: what is kept, shown, used and forgotten; what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hwdb.device import Device, Machine
from planner import calibrations
from planner.cli import main

DATA = Path(__file__).parent / "data" / "imports"
PLAN = ["--gpu", "rtx 4080", "--task", "chat", "--json"]
WHY = ["why", "qwen2.5-7b-instruct", "--gpu", "rtx 4080", "--quant", "Q4_K_M"]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLM_PLAN_CONFIG_DIR", str(tmp_path / "config"))
    return tmp_path / "config" / "calibrations"


def learn(*more: str) -> int:
    return main(["calibrate", "--from", str(DATA / "llama_bench.json"), *more])


def output(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(arguments) == 0
    return capsys.readouterr().out


def test_a_calibration_is_kept_with_its_origin_and_listed(
    own_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert learn() == 0
    (file,) = own_folder.glob("*.json")
    kept = json.loads(file.read_text())
    assert (kept["file"], kept["tool"], len(kept["rows"])) == ("llama_bench.json", "llama-bench", 2)
    assert kept["sha256"].startswith(kept["id"])
    assert len(kept["rows"][0]["samples"]) == 5
    assert kept["error_after"] < kept["error_before"]
    assert "2025-04-24 (2 rows)" in output(["calibrate", "--list"], capsys)


def test_learning_the_same_file_twice_counts_it_once(own_folder: Path) -> None:
    learn()
    before = calibrations.load()[0]
    learn()
    assert len(list(own_folder.glob("*.json"))) == 1
    assert calibrations.load()[0] == before


def test_plan_and_why_use_it_and_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    before = json.loads(output(PLAN, capsys))
    learn()
    after = json.loads(output(PLAN, capsys))
    old = {r["model"]: r["tokens_per_s"] for r in before["answer"]["rows"]}
    shared = [r for r in after["answer"]["rows"] if r["model"] in old and r["engine"] == "llama.cpp"]
    assert shared
    assert any(r["tokens_per_s"]["best"] > old[r["model"]]["best"] for r in shared)
    assert any("calibrated on your measurements of 2025-04-24" in n for n in after["answer"]["notes"])
    assert "calibrated on your measurements of 2025-04-24 (1 row)" in output(WHY, capsys)


def test_undoing_and_no_calibration_restore_the_output_byte_for_byte(
    own_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, why = output(PLAN, capsys), output(WHY, capsys)
    learn()
    assert output(PLAN, capsys) != before
    assert output([*PLAN, "--no-calibration"], capsys) == before
    assert output([*WHY, "--no-calibration"], capsys) == why
    name = next(own_folder.glob("*.json")).stem
    assert main(["calibrate", "--undo", name]) == 0
    assert output(PLAN, capsys) == before
    assert output(WHY, capsys) == why


def test_undo_all_forgets_everything_and_an_unknown_id_is_named(own_folder: Path) -> None:
    learn()
    assert main(["calibrate", "--undo", "nope"]) == 4
    assert list(own_folder.glob("*.json"))
    assert main(["calibrate", "--undo", "../x"]) == 4
    assert main(["calibrate", "--undo", "all"]) == 0
    assert not list(own_folder.glob("*.json"))


def test_a_dry_run_keeps_nothing(own_folder: Path) -> None:
    assert learn("--dry-run") == 0
    assert not own_folder.exists()


def test_a_class_of_cards_is_not_the_users_card(capsys: pytest.CaptureFixture[str]) -> None:
    before = output(["--vram", "16G", "--task", "chat", "--json"], capsys)
    learn()
    assert output(["--vram", "16G", "--task", "chat", "--json"], capsys) == before


def test_the_gate_ignores_the_folder_unless_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = tmp_path / "plan.yaml"
    spec.write_text(
        "version: 1\nmachine: {gpu: rtx 4080, ram: 32G}\ndeployments:\n  - name: one\n"
        "    model: qwen2.5-7b-instruct\n    quant: Q4_K_M\n    settings: {context: 8k}\n"
        "    require: {min_tps: 10}\n"
    )
    plain = output(["check", str(spec), "--format", "json"], capsys)
    learn()
    assert output(["check", str(spec), "--format", "json"], capsys) == plain
    assert output(["check", str(spec), "--format", "json", "--calibrated"], capsys) != plain


def test_a_contaminated_run_is_refused(
    tmp_path: Path, own_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = json.loads((DATA / "llama_bench.json").read_text())
    for record in records:
        record |= {"contaminated": True, "remarks": ["another process was busy"]}
    (tmp_path / "x.json").write_text(json.dumps(records))
    assert main(["calibrate", "--from", str(tmp_path / "x.json")]) == 2
    assert "another process was busy" in capsys.readouterr().err
    assert not own_folder.exists()


@pytest.mark.parametrize(("rate", "why"), [(300.0, "faster than the device"), (2.0, "times slower")])
def test_a_rate_that_is_not_this_devices_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rate: float, why: str
) -> None:
    record = json.loads((DATA / "llama_bench.json").read_text())[1] | {"avg_ts": rate, "samples_ts": []}
    (tmp_path / "x.json").write_text(json.dumps([record]))
    assert main(["calibrate", "--from", str(tmp_path / "x.json")]) == 2
    assert why in capsys.readouterr().err


def test_one_broken_file_of_several_keeps_nothing(tmp_path: Path, own_folder: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    assert learn("--from", str(tmp_path / "x.json")) == 2
    assert not own_folder.exists()


def test_a_broken_or_outdated_calibration_is_left_aside_with_a_note(
    own_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = output(PLAN, capsys)
    learn()
    (file,) = own_folder.glob("*.json")
    file.write_text(file.read_text().replace(calibrations.basis(), "0.0.1-abc"))
    (own_folder / "ffffff.json").write_text('{"schema_version": 1, "rows": [{}]}')
    assert output(PLAN, capsys) == before
    assert main(["calibrate", "--list"]) == 0
    assert "left aside" in capsys.readouterr().out
    assert len(calibrations.load()[1]) == 2


@pytest.mark.parametrize("arguments", [[], ["--list", "--undo", "all"], ["--gpu", "rtx 4080"]])
def test_one_thing_at_a_time(arguments: list[str]) -> None:
    assert main(["calibrate", *arguments]) == 2


def test_what_predictions_learn_is_independent_of_the_order_of_files(tmp_path: Path) -> None:
    from estimators.personal import correction

    files = ["--from", str(DATA / "llama_bench.json"), "--from", str(DATA / "llama_bench.jsonl")]
    assert main(["calibrate", *files]) == 0
    one = calibrations.load()[0]
    assert main(["calibrate", "--undo", "all"]) == 0
    assert main(["calibrate", *files[2:], *files[:2]]) == 0
    other = calibrations.load()[0]
    assert one is not None
    assert other is not None
    for group, rows in one.groups.items():
        found = [correction(r, 1.3, 0.8).factor for r in (rows, other.groups[group])]
        assert found[0] == pytest.approx(found[1])


def test_a_refit_needs_many_rows(tmp_path: Path) -> None:
    out = tmp_path / "effects.yaml"
    assert main(["calibrate", "--from", str(DATA / "rows.csv"), "--out", str(out)]) == 2
    assert not out.exists()


def test_rates_measured_here_and_rates_of_the_datasheet_are_not_mixed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was learnt against the datasheet must not be applied on top of `plan measure`, nor the reverse."""
    from hwdb import catalogue, user_devices

    cpu = catalogue.load().resolve("amd-ryzen-7-7800x3d")
    record = json.loads((DATA / "llama_bench.json").read_text())[1]
    record |= {"backends": "CPU", "gpu_info": "", "n_threads": 8, "avg_ts": 9.0, "samples_ts": []}
    (tmp_path / "x.json").write_text(json.dumps([record]))
    assert main(["calibrate", "--from", str(tmp_path / "x.json")]) == 0
    plain = calibrations.load()[0]
    measured = user_devices.Measurement(
        cpu.name, "cpu", "2026-01-01", "test", cpu.cpu_cores, bandwidth_bytes_per_s=40e9
    )
    user_devices.write(measured)
    assert main(["calibrate", "--from", str(tmp_path / "x.json")]) == 0
    again = calibrations.load()[0]
    assert plain is not None
    assert again is not None
    assert plain.residuals[0].device == cpu.id
    assert again.residuals[0].device == f"{cpu.id} (measured)"
    assert again.residuals[0].log_ratio != plain.residuals[0].log_ratio
    assert plain.note(cpu, "llama.cpp", "cpu")
    assert not again.note(cpu, "llama.cpp", "cpu")


def test_a_file_of_our_own_predictions_changes_no_prediction(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from planner import imports
    from planner.calibrate import compare
    from planner.calibrations import Kept

    before = json.loads(output([*WHY, "--json"], capsys))
    records = json.loads((DATA / "llama_bench.json").read_text())
    for record, row in zip(records, imports.read(DATA / "llama_bench.json").rows, strict=True):
        found = compare(row)
        assert isinstance(found, Kept)
        record |= {"avg_ts": found.predicted, "stddev_ts": 0.0, "samples_ts": []}
    (tmp_path / "x.json").write_text(json.dumps(records))
    assert main(["calibrate", "--from", str(tmp_path / "x.json")]) == 0
    after = json.loads(output([*WHY, "--json"], capsys))
    for name in ("ttft_s", "tpot_s"):
        assert after[name]["best"] == pytest.approx(before[name]["best"], rel=1e-9)
        assert after[name]["high"] / after[name]["low"] < before[name]["high"] / before[name]["low"]


def test_a_processor_that_no_catalogue_lists_is_known_where_it_is_this_one(
    tmp_path: Path, own_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = Device("some-cpu", "Some CPU", "AMD", "cpu", memory_bytes=16 << 30, bandwidth_bytes_per_s=50e9,
                  fp32_flops=1e12, cpu_cores=4, cpu_isa=("avx2",), basis="measured")  # fmt: skip
    monkeypatch.setattr("hwdb.detect.detect", lambda: Machine("here", host=here))
    rows = json.loads((DATA / "llama_bench.json").read_text())
    own = {"backends": "CPU", "gpu_info": "", "n_threads": 4, "devices": "auto"}
    path = tmp_path / "own.json"
    path.write_text(json.dumps([r | own | {"cpu_info": "Some CPU", "avg_ts": 20.0} for r in rows]))
    assert main(["calibrate", "--from", str(path)]) == 0
    (file,) = own_folder.glob("*.json")
    kept = json.loads(file.read_text())["rows"]
    assert {r["residual"]["device"] for r in kept} == {"some-cpu (measured)"}
    assert all(r["residual"]["format"] and r["residual"]["n_params"] > 0 for r in kept)
    path.write_text(json.dumps([r | own | {"cpu_info": "Another CPU"} for r in rows]))
    assert main(["calibrate", "--from", str(path)]) == 2
    assert "no device is called `Another CPU`" in capsys.readouterr().err
