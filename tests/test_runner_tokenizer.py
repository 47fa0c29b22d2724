"""Vocabularies of GGUF files and tokenizer.json encode as the `tokenizers` package itself does, and decode back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modeldb.errors import BrokenFile, UnsupportedModel
from runner.errors import RunnerError
from runner.weights import Weights

tokenizers = pytest.importorskip("tokenizers")
from runner import tokenizer  # noqa: E402

TEXT = "The quick brown fox isn't lazy: 12345 dogs, naïve café — 🙂 and\n\n  two  spaces.\tEnd"
CORPUS = [TEXT, "brown dogs and lazy foxes are two of the quick ones", "the end of the day is the time"] * 4


def _weights(metadata: dict[str, Any]) -> Weights:
    return Weights("m.gguf", {f"tokenizer.{k}": v for k, v in metadata.items()}, {})


@pytest.fixture(scope="module")
def trained() -> Any:
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    special = ["<|im_start|>", "<|im_end|>"]
    made.train_from_iterator(
        CORPUS,
        tokenizers.trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=special),
    )
    return made


def _gguf(trained: Any, **more: Any) -> Weights:
    held = json.loads(trained.to_str())["model"]
    tokens = [t for t, _ in sorted(held["vocab"].items(), key=lambda pair: pair[1])]
    merges = [m if isinstance(m, str) else " ".join(m) for m in held["merges"]]
    kinds = [3, 3] + [1] * (len(tokens) - 2)
    return _weights(
        {"ggml.model": "gpt2", "ggml.pre": "gpt-2", "ggml.tokens": tokens, "ggml.merges": merges,
         "ggml.token_type": kinds, "ggml.eos_token_id": 1, **more},
    )  # fmt: skip


def test_byte_level_vocabularies_encode_as_trained_and_decode_back(trained: Any) -> None:
    found = tokenizer.of_weights(_gguf(trained))
    assert found.encode(TEXT) == trained.encode(TEXT).ids
    assert found.decode(found.encode(TEXT)) == TEXT
    assert found.stops == {1}
    assert found.encode("a<|im_end|>b")[1] == 1
    assert "".join(tokenizer.pieces(found, iter(found.encode(TEXT)))) == TEXT


def test_unknown_ways_of_cutting_are_told(trained: Any) -> None:
    assert "not known" in tokenizer.of_weights(_gguf(trained, **{"ggml.pre": "mystery"})).note
    assert tokenizer.of_weights(_gguf(trained)).note == ""


@pytest.mark.parametrize("name", sorted(tokenizer.SPLITS))
def test_every_way_of_cutting_loses_no_text(name: str, trained: Any) -> None:
    found = tokenizer.of_weights(_gguf(trained, **{"ggml.pre": name}))
    assert found.decode(found.encode(TEXT)) == TEXT


def test_sentencepiece_vocabularies_merge_by_score_and_fall_back_to_bytes() -> None:
    space = tokenizer.SPACE
    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    words = [
        space,
        "t",
        "h",
        "e",
        "a",
        "n",
        "d",
        "th",
        "the",
        f"{space}the",
        "an",
        f"{space}an",
        f"{space}and",
        "ha",
    ]
    scores = [0.0] * 7 + [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0, -0.5]
    tokens = ["<unk>", "<s>", "</s>", *bytes_, *words]
    found = tokenizer.of_weights(
        _weights({"ggml.model": "llama", "ggml.tokens": tokens, "ggml.scores": [0.0] * 259 + scores,
                  "ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(words), "ggml.bos_token_id": 1,
                  "ggml.eos_token_id": 2})
    )  # fmt: skip
    at = {t: i for i, t in enumerate(tokens)}
    assert found.encode("the and") == [1, at[f"{space}the"], at[f"{space}and"]]
    # "ha" has the best score, so it merges before "th" can
    assert found.encode("tha", special=False) == [at[space], at["t"], at["ha"]]
    assert found.decode(found.encode("the é", special=False)) == "the é"
    assert at["<0xC3>"] in found.encode("é")


def test_unigram_vocabularies_take_the_likeliest_pieces() -> None:
    space = tokenizer.SPACE
    tokens, scores = (
        ["<unk>", "</s>", f"{space}ab", "c", f"{space}a", "bc"],
        [0.0, 0.0, -1.0, -1.0, -3.0, -3.0],
    )
    found = tokenizer.of_weights(_weights({"ggml.model": "t5", "ggml.tokens": tokens, "ggml.scores": scores}))
    assert found.encode("abc") == [2, 3]
    assert found.decode([2, 3]) == "abc"


def test_a_tokenizer_file_reads_with_its_chat_template(trained: Any, tmp_path: Path) -> None:
    trained.save(str(tmp_path / "tokenizer.json"))
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}<|im_start|>"
    )
    config = {"eos_token": "<|im_end|>", "chat_template": template}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    found = tokenizer.of_file(tmp_path / "tokenizer.json")
    assert found.encode(TEXT) == trained.encode(TEXT).ids
    ids = found.chat([{"role": "user", "content": "the end"}])
    assert (ids[0], ids[-1], ids.count(1), found.stops) == (0, 0, 1, {1})
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(BrokenFile, match="not a tokenizer"):
        tokenizer.of_file(tmp_path / "broken.json")


@pytest.mark.parametrize(
    "template",
    ["{{ raise_exception('roles must alternate') }}", "{{ messages.__class__.__mro__[1].__subclasses__() }}",
     "{% for %}", "{{ 1 / 0 }}"],
)  # fmt: skip
def test_templates_run_in_a_sandbox_and_fail_in_a_sentence(template: str) -> None:
    pytest.importorskip("jinja2")
    with pytest.raises(RunnerError, match="chat template"):
        tokenizer.render(template, [{"role": "user", "content": "x"}])


def test_files_without_a_vocabulary_or_of_another_kind_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match="no vocabulary"):
        tokenizer.of_weights(_weights({"ggml.model": "no_vocab"}))
    with pytest.raises(UnsupportedModel, match="`rwkv`"):
        tokenizer.of_weights(_weights({"ggml.model": "rwkv", "ggml.tokens": ["a"]}))
