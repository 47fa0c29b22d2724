"""Labels of quantizations are read word by word, or not at all."""

import pytest

from planner import names, quant_words


@pytest.mark.parametrize(
    ("label", "meant"),
    [
        ("AWQ INT4 (GEMM)", "awq-4bit"), ("GPTQ-4bit-128g-actorder", "gptq-4bit-g128"), ("q4f16_1", "int4"),
        ("q0f16", "fp16"), ("4.0bpw", "exl2-4bpw"), ("EXL2-4.65 bpw", "exl2-4.65bpw"), ("FP8 dynamic", "fp8"),
        ("bitsandbytes 4bit", "bnb-nf4"), ("bnb int8", "bnb-int8"), ("W8A8-INT8", "int8"), ("FP4", "nvfp4"),
        ("float16", "fp16"), ("INT4 g32 GEMM", "gptq-4bit-g32"),
    ],
)  # fmt: skip
def test_labels_of_known_words_are_read(label: str, meant: str) -> None:
    assert quant_words.read(label) == meant


@pytest.mark.parametrize(
    "label", ["banana awq", "GEMM", "awq gptq", "fp8 int4", "int4 int8", "", "NVFP4 + FP8 KV 9"]
)
def test_unknown_or_contradicting_words_are_not_guessed(label: str) -> None:
    assert quant_words.read(label) is None


@pytest.mark.parametrize(
    ("label", "engine", "scheme"),
    [
        ("AWQ GEMV", "autoawq", "awq-4bit-g128"), ("GEMM", "autoawq", "awq-4bit-g128"), ("", "ollama", "Q4_K_M"),
        ("q4f16_1", "mlc-llm", "awq-4bit-g32"), ("FP4", "trt-llm", "nvfp4-hf"), ("Q4_0_4_4", "llama.cpp", "Q4_0"),
        ("4.65 bpw", "exllamav2", "exl2-4.65bpw"), ("w4a16", "vllm", "awq-4bit-g128"),
    ],
)  # fmt: skip
def test_the_engine_decides_what_a_word_means(label: str, engine: str, scheme: str) -> None:
    found = names.quant(label, engine, "llama-3.1-8b-instruct")
    assert getattr(found, "id", found) == scheme


def test_a_blank_label_is_refused_where_the_engine_has_no_usual() -> None:
    assert "no quantization" in names.quant("", "llama.cpp", "llama-3.1-8b-instruct").reason
