"""A model of the user's own, as a folder or a configuration: commands take it as one of the catalogue."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import readers_files as files

from modeldb import catalogue, readers
from planner.cli import main

CONFIG = {
    "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_size": 256, "intermediate_size": 512,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 512,
    "max_position_embeddings": 16384, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "mine"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    return path


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (["--gpu", "rtx 4090"], ["vllm serve {folder} "]),
        (["--gpu", "rtx 4090", "-q", "fp8"], ["vllm serve {folder} ", " --quantization fp8 "]),
        (["--gpu", "rtx 4090", "-q", "Q8_0"],
         ["python convert_hf_to_gguf.py {folder} --outtype f16 --outfile mine-F16.gguf",
          "llama-quantize mine-F16.gguf mine-Q8_0.gguf Q8_0", "llama-server -m mine-Q8_0.gguf "]),
        (["--gpu", "rtx 4090", "-q", "BF16"],
         ["python convert_hf_to_gguf.py {folder} --outtype bf16 --outfile mine-BF16.gguf",
          "llama-server -m mine-BF16.gguf "]),
        (["--gpu", "m2 max 96gb"], ["mlx_lm.server --model {folder}\n"]),
    ],
)  # fmt: skip
def test_commands_name_the_folder_that_holds_the_weights(
    arguments: list[str], lines: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["command", str(folder / "config.json"), *arguments]) == 0
    text = capsys.readouterr().out
    assert all(line.format(folder=folder) in text for line in lines), text
    assert "hf download" not in text


def test_a_folder_needs_no_slash_and_hides_no_model_of_the_catalogue(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder.parent)
    assert main(["show", "mine", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["architecture"] == "qwen3"
    folder.rename("qwen3-8b")
    assert main(["show", "qwen3-8b", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"] == 8190735360
    assert main(["show", ""]) == 4


def test_what_no_engine_loads_is_said_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["command", "whisper-large-v3", "--gpu", "rtx 4090"]) == 3
    assert "no engine cannot" not in capsys.readouterr().err


def test_a_configuration_has_the_architecture_of_its_gguf_file(folder: Path) -> None:
    model, _ = readers.read(str(folder))
    assert model.architecture == "qwen3"
    assert catalogue.load().get("mistral-small-4-119b-2603").architecture == "mistral4"
    assert catalogue.load().get("nvidia-nemotron-nano-9b-v2").architecture == "nemotron_h"


def test_a_file_is_not_offered_in_a_quantization_that_it_is_not_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "m.gguf"
    files.write_model(file, catalogue.load().get("smollm2-135m-instruct"), "Q8_0", tokens=100)
    asked = ["--gpu", "rtx 4090", "-q"]
    for arguments in (["-m", str(file), *asked], ["why", str(file), *asked], ["verify", str(file), "-q"]):
        assert main([*arguments, "Q4_K_M"]) == 2
        assert f"`{file}` holds its weights in Q8_0" in capsys.readouterr().err
    assert main(["-m", str(file), *asked, "Q8_0"]) == 0
    spec = tmp_path / "plan.yaml"
    for quant, code, says in (("Q4_K_M", 2, ":6:5: `m.gguf` holds its weights in Q8_0, not in Q4_K_M"),
                              ("Q99", 2, ":6:5: no quantization is called `Q99`"), ("Q8_0", 0, "")):  # fmt: skip
        spec.write_text("version: 1\nmachine: {gpu: rtx 4090, ram: 16G}\ndeployments:\n  - name: a\n"
                        f"    path: m.gguf\n    quant: {quant}\n    require: {{min_tps: 1}}\n")  # fmt: skip
        assert main(["check", str(spec)]) == code
        assert says in capsys.readouterr().err
