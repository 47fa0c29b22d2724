"""Text to tokens and back, by the vocabulary of a GGUF file or a `tokenizer.json`."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeldb.errors import BrokenFile, UnsupportedModel
from runner.errors import RunnerError
from runner.weights import Weights

CONTROL, USER_DEFINED, BYTE = 3, 4, 6  # tokenizer.ggml.token_type (ggml/docs/gguf.md)
SPACE = "\u2581"
DIGITS_3 = r"\p{N}{1,3}"

# How text is cut before byte-pair merging. From the models' own tokenizer.json on huggingface.co: GPT-2,
# Llama 3, Qwen 2.5, gpt-oss.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {
    "default": _GPT2, "gpt-2": _GPT2, "gpt2": _GPT2, "phi-2": _GPT2, "olmo": _GPT2,
    "llama-bpe": _CL100K % DIGITS_3, "llama3": _CL100K % DIGITS_3, "llama-v3": _CL100K % DIGITS_3,
    "smaug-bpe": _CL100K % DIGITS_3, "dbrx": _CL100K % DIGITS_3, "falcon3": _CL100K % DIGITS_3,
    "qwen2": _CL100K % r"\p{N}", "deepseek-r1-qwen": _CL100K % r"\p{N}", "megrez": _CL100K % r"\p{N}",
    "gpt-4o": _O200K, "llama4": _O200K,
}  # fmt: skip


@dataclass(frozen=True)
class Vocabulary:
    """Encodes, decodes, and knows the special tokens. `backend` is a `tokenizers.Tokenizer`."""

    backend: Any
    bos: int | None
    stops: frozenset[int]  # end of text, end of turn
    adds_bos: bool
    template: str
    note: str = ""

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids; with `special`, begun as the model wants its texts begun."""
        ids = list(self.backend.encode(text, add_special_tokens=False).ids)
        if special and self.adds_bos and self.bos is not None and ids[:1] != [self.bos]:
            ids.insert(0, self.bos)
        return ids

    def decode(self, ids: Sequence[int], keep_special: bool = False) -> str:
        return str(self.backend.decode(list(ids), skip_special_tokens=not keep_special))

    def chat(self, messages: list[dict[str, str]]) -> list[int]:
        """The tokens of a conversation that waits for its answer, by the model's own template."""
        return self.encode(
            render(self.template, messages, self._word(self.bos), self._word(min(self.stops, default=None)))
        )

    def _word(self, token: int | None) -> str:
        return "" if token is None else self.backend.id_to_token(token) or ""


def pieces(vocabulary: Vocabulary | Numbered, tokens: Iterator[int]) -> Iterator[str]:
    """Text as it becomes certain: a character cut between tokens waits for its rest."""
    ids: list[int] = []
    shown = ""
    for token in tokens:
        ids.append(token)
        text = vocabulary.decode(ids)
        if text.endswith("\ufffd") and len(ids) < 8:
            continue
        if len(text) > len(shown):
            yield text[len(shown) :]
        # keep a little context: some decoders treat a first token's space differently
        ids = ids[-4:]
        shown = vocabulary.decode(ids)
    rest = vocabulary.decode(ids)
    if len(rest) > len(shown):
        yield rest[len(shown) :]


def of_weights(weights: Weights) -> Vocabulary:
    """From the metadata of a GGUF file, or the `tokenizer.json` of a folder. Raises UnsupportedModel for a
    kind of vocabulary that is not read."""
    _need_package()
    data = weights.metadata
    if "tokenizer.file" in data:  # a Hugging Face folder
        return of_file(data["tokenizer.file"])
    kind = data.get("tokenizer.ggml.model", "no_vocab")
    if kind == "no_vocab" or "tokenizer.ggml.tokens" not in data:
        raise UnsupportedModel(
            f"{weights.name}: the file has no vocabulary; it takes token numbers, not text"
        )
    array = lambda key: _array(weights, f"tokenizer.ggml.{key}")  # noqa: E731
    tokens, types = [str(t) for t in array("tokens")], list(array("token_type"))
    if len(set(tokens)) != len(tokens):
        tokens = _distinct(tokens)
    note = ""
    if kind == "gpt2":
        pre = data.get("tokenizer.ggml.pre", "default")
        if pre not in SPLITS:
            note = f"texts are cut as GPT-2 does: the rule `{pre}` is not known here"
        backend = _byte_level(tokens, [str(m) for m in array("merges")], SPLITS.get(pre, _GPT2))
    elif kind == "llama":
        backend = _sentencepiece(
            tokens, list(array("scores")), bool(data.get("tokenizer.ggml.add_space_prefix", True))
        )
    elif kind in ("t5", "unigram"):
        backend = _unigram(tokens, list(array("scores")), int(data.get("tokenizer.ggml.unknown_token_id", 0)))
    else:
        raise UnsupportedModel(f"{weights.name}: a `{kind}` vocabulary is not read (gpt2, llama, t5 are)")
    _add_special(backend, tokens, types)
    number = lambda key: data.get(f"tokenizer.ggml.{key}_token_id")  # noqa: E731
    bos = number("bos")
    stops = {int(v) for k in ("eos", "eot", "eom") if (v := number(k)) is not None}
    stops |= {i for i, t in enumerate(tokens) if t in END_OF_TURN}
    adds = bool(data.get("tokenizer.ggml.add_bos_token", kind == "llama"))
    return Vocabulary(
        backend, bos, frozenset(stops), adds, str(data.get("tokenizer.chat_template", "")), note
    )


#: Tokens that end a turn although a file may name another as its end of text (model cards of the families).
END_OF_TURN = frozenset(
    {"<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>", "<|endoftext|>", "<|return|>", "</s>"}
)


def of_file(path: str | Path) -> Vocabulary:
    """From a `tokenizer.json`, with the chat template of a `tokenizer_config.json` beside it."""
    _need_package()
    from tokenizers import Tokenizer

    path = Path(path)
    try:
        backend = Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises plain Exception
        raise BrokenFile(f"{path}: not a tokenizer: {str(error).splitlines()[0]}") from None
    beside = path.with_name("tokenizer_config.json")
    config = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
    word = lambda key: v.get("content", "") if isinstance(v := config.get(key), dict) else v or ""  # noqa: E731
    bos = backend.token_to_id(word("bos_token")) if word("bos_token") else None
    found = (backend.token_to_id(w) for w in (*END_OF_TURN, word("eos_token")) if w)
    stops = {int(i) for i in found if i is not None}
    template = config.get("chat_template") or ""
    adds = bool(config.get("add_bos_token", bos is not None and backend.encode("a").ids[:1] == [bos]))
    return Vocabulary(backend, bos, frozenset(stops), adds, template if isinstance(template, str) else "")


def render(template: str, messages: list[dict[str, str]], bos: str = "", eos: str = "") -> str:
    """A conversation as text, by a Jinja template in a sandbox. Raises RunnerError when it refuses."""
    if not template:
        return "".join(f"{m['role']}: {m['content']}\n" for m in messages) + "assistant: "
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(
        value, ensure_ascii=False, indent=indent
    )
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    try:
        compiled = environment.from_string(template)
        return compiled.render(
            messages=messages, add_generation_prompt=True, bos_token=bos, eos_token=eos, tools=None
        )
    except (TemplateError, TypeError, ValueError, KeyError, AttributeError, ZeroDivisionError) as error:
        raise RunnerError(
            f"the chat template cannot render these messages: {' '.join(str(error).split())}"
        ) from None


def _need_package() -> None:
    import importlib.util

    if importlib.util.find_spec("tokenizers") is None:
        raise RunnerError("texts need the tokenizers package: pip install 'llm-plan[run]'")


def _array(weights: Weights, key: str) -> Sequence[Any]:
    if key not in weights.metadata:
        return ()
    return weights.file.load_array(key) if weights.file is not None else weights.metadata[key]


def _distinct(tokens: list[str]) -> list[str]:
    """Some files repeat unused entries; a vocabulary cannot."""
    seen: set[str] = set()
    out = []
    for i, token in enumerate(tokens):
        out.append(token if token not in seen else f"<repeated {i}>")
        seen.add(token)
    return out


def _byte_level(tokens: list[str], merges: list[str], split: str) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {token: i for i, token in enumerate(tokens)}
    pairs = [(m[0], m[2]) if m == "   " else tuple(m.split(" ", 1)) for m in merges]
    known = [
        p
        for p in pairs
        if len(p) == 2 and p[0] in vocabulary and p[1] in vocabulary and p[0] + p[1] in vocabulary
    ]
    backend = Tokenizer(models.BPE(vocabulary, known, ignore_merges=len(tokens) > 100_000))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(tokens: list[str], scores: list[float], prefix: bool) -> Any:
    """SentencePiece's byte-pair kind keeps scores instead of merges: a pair merges the earlier, the better
    the score of what it makes."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    vocabulary = {token: i for i, token in enumerate(tokens)}
    scored = []
    for token, i in vocabulary.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocabulary and right in vocabulary:
                scored.append(
                    (-scores[i] if i < len(scores) else 0.0, vocabulary[left], vocabulary[right], left, right)
                )
    scored.sort(key=lambda s: s[:3])
    pairs = [(left, right) for _, _, _, left, right in scored]
    backend = Tokenizer(models.BPE(vocabulary, pairs, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    steps: list[Any] = [normalizers.Prepend(SPACE)] if prefix else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    after: list[Any] = [decoders.Strip(" ", 1, 0)] if prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *after]
    )
    return backend


def _unigram(tokens: list[str], scores: list[float], unknown: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    backend = Tokenizer(models.Unigram(list(zip(tokens, scores, strict=True)), unknown, False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return backend


def _add_special(backend: Any, tokens: list[str], types: list[int]) -> None:
    from tokenizers import AddedToken

    kinds = types or [0] * len(tokens)
    control = [
        AddedToken(t, special=True, normalized=False)
        for t, k in zip(tokens, kinds, strict=False)
        if k == CONTROL
    ]
    own = [
        AddedToken(t, special=False, normalized=False)
        for t, k in zip(tokens, kinds, strict=False)
        if k == USER_DEFINED
    ]
    backend.add_special_tokens(control)
    backend.add_tokens(own)


class Numbered:
    """Stands in for the vocabulary of synthetic weights: a token's word is its number, any other word some token."""

    bos, stops, adds_bos, template, note = None, frozenset[int](), False, "", ""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def encode(self, text: str, special: bool = True) -> list[int]:
        import zlib

        return [
            (int(w) if w.isascii() and w.isdigit() else zlib.crc32(w.encode())) % self.vocab_size
            for w in text.split()
        ] or [0]

    def decode(self, ids: Sequence[int], keep_special: bool = False) -> str:
        return "".join(f" {i}" for i in ids)

    def chat(self, messages: list[dict[str, str]]) -> list[int]:
        return self.encode(render("", messages))
