"""GGUF headers: what a file says is read exactly, and no file can make the reader do more than look."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import pytest
import readers_files as files

from modeldb import catalogue, formats, gguf_header, readers, schemes
from modeldb.errors import BrokenFile, ModelError, UnsupportedModel
from modeldb.gguf_file import open_gguf
from modeldb.gguf_header import GGML_TYPES, LongArray

# architectures whose files do not say that some layers slide
SILENT_ABOUT_WINDOWS = {"llama", "phi3", "starcoder2"}


def one_per_architecture() -> list[str]:
    found: dict[str, str] = {}
    for model in catalogue.load().models:
        windows = any(c.window_tokens for c in model.caches())
        if model.architecture and not (windows and model.architecture in SILENT_ABOUT_WINDOWS):
            found.setdefault(model.architecture, model.id)
    found.pop("glm-dsa", None)  # which of its layers hold an indexer is not in our layout
    return sorted(found.values())


def written(model_id: str, tmp_path: Path, scheme: str = "Q4_K_M"):
    model = catalogue.load().get(model_id)
    path = tmp_path / f"{model_id}.gguf"
    try:
        files.write_model(path, model, scheme)
    except UnsupportedModel as error:
        pytest.skip(f"its GGUF layout is not known: {error}")
    return model, path


@pytest.mark.parametrize("model_id", one_per_architecture())
def test_caches_and_tensors_of_a_file_equal_the_catalogue(model_id: str, tmp_path: Path) -> None:
    model, path = written(model_id, tmp_path)
    read, scheme = readers.read(str(path))
    assert read.caches() == model.caches()
    assert read.n_layers == model.n_layers
    assert (read.hidden_size, read.vocab_size) == (model.hidden_size, read.vocab_size)
    expected = {t.name: (t.shape, f.id) for t, f in schemes.assign(schemes.get("Q4_K_M"), model)}
    assert {t.name: (t.shape, t.format) for t in read.file_tensors} == expected
    assert (scheme.id, scheme.label) == ("file", "Q4_K_M")


@pytest.mark.parametrize(
    "model_id",
    ["qwen3-30b-a3b", "gpt-oss-20b", "deepseek-v3", "falcon-h1-0.5b-instruct", "qwen3-next-80b-a3b-instruct",
     "gemma-3-4b-it", "mamba-codestral-7b-v0.1", "llama-3.1-8b-instruct"],
)  # fmt: skip
def test_layers_of_a_file_equal_the_catalogue(model_id: str, tmp_path: Path) -> None:
    model, path = written(model_id, tmp_path)
    read, _ = readers.read(str(path))
    for mine, theirs in zip(read.blocks, model.blocks, strict=True):
        assert mine.mixers == theirs.mixers
        assert [type(f) for f in mine.feed_forwards] == [type(f) for f in theirs.feed_forwards]
        for a, b in zip(mine.feed_forwards, theirs.feed_forwards, strict=True):
            assert (a.inner, a.n_matrices) == (b.inner, b.n_matrices)


def test_roles_cover_a_file_and_none_is_unknown(tmp_path: Path) -> None:
    for model_id in ("deepseek-v3", "falcon-h1-0.5b-instruct", "gpt-oss-20b", "qwen3-next-80b-a3b-instruct"):
        _, path = written(model_id, tmp_path)
        read, _ = readers.read(str(path))
        assert not [t.name for t in read.file_tensors if t.role == "other"]


def test_reader_and_formats_agree_on_every_ggml_type() -> None:
    for name, block, block_bytes in GGML_TYPES.values():
        stored = formats.get(name)
        assert (stored.block_weights, stored.block_bytes, stored.overhead_bits) == (block, block_bytes, 0)


def test_types_equal_the_gguf_package() -> None:
    import gguf

    for kind in gguf.GGMLQuantizationType:
        ours = GGML_TYPES[int(kind)]
        assert ours[0] == kind.name
        if kind.name != "Q8_1":  # not a file type; the package counts its sums as 32-bit
            assert ours[1:] == gguf.GGML_QUANT_SIZES[kind]


def test_offsets_are_those_of_the_gguf_package(tmp_path: Path) -> None:
    import gguf

    _, path = written("gemma-3-1b-it", tmp_path)
    theirs = {
        t.name: (t.data_offset, t.n_bytes, tuple(int(x) for x in t.shape))
        for t in gguf.GGUFReader(path).tensors
    }
    ours = {t.name: (t.offset, t.nbytes, t.shape) for t in open_gguf(path).tensors}
    assert ours == theirs


def test_a_large_header_is_read_in_a_moment_and_its_vocabulary_on_demand(tmp_path: Path) -> None:
    model = catalogue.load().get("llama-3.3-70b-instruct")
    path = tmp_path / "70b.gguf"
    files.write_model(path, model, tokens=128_256)
    started = time.process_time()
    file = open_gguf(path)
    assert time.process_time() - started < 1  # of the processor's time; 0.1 s is usual
    vocabulary = file.metadata["tokenizer.ggml.tokens"]
    assert isinstance(vocabulary, LongArray)
    assert len(vocabulary) == 128_256
    assert file.load_array("tokenizer.ggml.tokens")[7] == "token 7"
    assert file.load_array("tokenizer.ggml.scores")[-1] == 0.5


def test_parts_make_one_model(tmp_path: Path) -> None:
    def part(i: int, tensors: list[bytes], data_bytes: int) -> bytes:
        split = [
            files.entry("split.no", 2, struct.pack("<H", i)),
            files.entry("split.count", 2, struct.pack("<H", 2)),
            files.entry("split.tensors.count", 5, struct.pack("<i", 3)),
        ]
        first = [files.ARCHITECTURE, *split] if i == 0 else split
        return files.assemble(first, tensors, data_bytes)

    one, two = (tmp_path / f"m-0000{i}-of-00002.gguf" for i in (1, 2))
    one.write_bytes(part(0, [files.tensor_entry("a", (8,)), files.tensor_entry("b", (8,), 0, 32)], 64))
    two.write_bytes(part(1, [files.tensor_entry("c", (8, 2))], 64))
    file = open_gguf(two)  # any part will do
    assert [(t.name, t.part) for t in file.tensors] == [("a", 0), ("b", 0), ("c", 1)]
    assert file.file_bytes == one.stat().st_size + two.stat().st_size
    two.unlink()
    with pytest.raises(BrokenFile, match=r"1 of 2 parts are missing.*00002-of-00002"):
        open_gguf(one)
    two.write_bytes(part(1, [files.tensor_entry("a", (8, 2))], 64))
    with pytest.raises(BrokenFile, match="occurs in two parts"):
        open_gguf(one)


def test_big_endian_files_are_read(tmp_path: Path) -> None:
    body = b"GGUF" + struct.pack(">IQQ", 3, 1, 1)
    body += struct.pack(">Q", 20) + b"general.architecture" + struct.pack(">IQ", 8, 5) + b"llama"
    body += struct.pack(">Q", 1) + b"t" + struct.pack(">IQQIQ", 2, 4, 8, 1, 0)
    body += b"\0" * (-len(body) % 32 + 64)
    path = tmp_path / "big.gguf"
    path.write_bytes(body)
    file = open_gguf(path)
    assert file.byte_order == ">"
    assert (file.tensors[0].shape, file.tensors[0].type, file.tensors[0].nbytes) == ((4, 8), "F16", 64)


HUGE = 10 << 30
ONE = [files.tensor_entry("t", (8,))]
LIES = {
    "no magic": b"GGML" + b"\0" * 100,
    "nothing": b"",
    "only a magic": b"GGUF",
    "version 9": files.assemble([files.ARCHITECTURE], [], version=9),
    "version 1": files.assemble([files.ARCHITECTURE], [], version=1),
    "2^63 tensors": files.assemble([files.ARCHITECTURE], [], counts=(1 << 63, 1)),
    "2^40 metadata": files.assemble([files.ARCHITECTURE], [], counts=(0, 1 << 40)),
    "10 GB key": b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, HUGE) + b"k" * 64,
    "10 GB string": files.assemble([files.entry("k", 8, struct.pack("<Q", HUGE))], []),
    "10 GB array": files.assemble([files.entry("k", 9, struct.pack("<IQ", 10, HUGE))], []),
    "2^64-1 strings": files.assemble([files.entry("k", 9, struct.pack("<IQ", 8, (1 << 64) - 1))], []),
    "nested array": files.assemble([files.entry("k", 9, struct.pack("<IQ", 9, 4))], []),
    "unknown value type": files.assemble([files.entry("k", 77, b"")], []),
    "key twice": files.assemble([files.ARCHITECTURE, files.ARCHITECTURE], []),
    "alignment 0": files.assemble([files.entry("general.alignment", 4, struct.pack("<I", 0))], []),
    "alignment 3": files.assemble([files.entry("general.alignment", 4, struct.pack("<I", 3))], []),
    "alignment text": files.assemble([files.entry("general.alignment", 8, files.text("a"))], []),
    "tensor twice": files.assemble([files.ARCHITECTURE], ONE + ONE, 64),
    "tensor of 9 dims": files.assemble([files.ARCHITECTURE], [files.tensor_entry("t", (1,) * 9)], 64),
    "tensor of 0 dims": files.assemble([files.ARCHITECTURE], [files.tensor_entry("t", ())], 64),
    "dim 0": files.assemble([files.ARCHITECTURE], [files.tensor_entry("t", (0, 4))], 64),
    "dims overflow": files.assemble([files.ARCHITECTURE], [files.tensor_entry("t", (1 << 40, 1 << 40))], 64),
    "row not a multiple": files.assemble([files.ARCHITECTURE], [files.tensor_entry("t", (33,), 2)], 64),
    "unknown tensor type": files.assemble([files.ARCHITECTURE], [files.tensor_entry("t", (32,), 99)], 64),
    "removed tensor type": files.assemble([files.ARCHITECTURE], [files.tensor_entry("t", (32,), 31)], 64),
    "offset outside": files.assemble([files.ARCHITECTURE], [files.tensor_entry("t", (8,), 0, 1 << 40)], 64),
    "offset unaligned": files.assemble([files.ARCHITECTURE], [files.tensor_entry("t", (8,), 0, 7)], 64),
    "overlap": files.assemble([files.ARCHITECTURE], [*ONE, files.tensor_entry("u", (8,))], 64),
    "data missing": files.assemble([files.ARCHITECTURE], [files.tensor_entry("t", (8192,))], 64),
    "no architecture": files.assemble([], ONE, 64),
    "empty architecture": files.assemble([files.entry("general.architecture", 8, files.text(""))], ONE, 64),
    "architecture without layers": files.assemble([files.ARCHITECTURE], ONE, 64),
    "2^31 layers": files.assemble(
        [files.ARCHITECTURE, files.entry("llama.block_count", 4, struct.pack("<I", 1 << 31))], ONE, 64),
    "layers as text": files.assemble(
        [files.ARCHITECTURE, files.entry("llama.block_count", 8, files.text("many"))], ONE, 64),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_header_is_one_line_and_fast(lie: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(LIES[lie])
    started = time.process_time()
    with pytest.raises((BrokenFile, UnsupportedModel)) as caught:
        readers.read(str(path))
    assert time.process_time() - started < 1
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_sparse_file_of_declared_strings_ends_in_bounded_time(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(files.assemble([files.entry("k", 9, struct.pack("<IQ", 8, 1 << 28))], []))
    with path.open("r+b") as file:
        file.truncate(4 << 30)  # a hole: four billion zero bytes, half a billion empty strings
    with pytest.raises(BrokenFile, match=r"strings|sane"):
        open_gguf(path)


def test_every_cut_of_a_file_is_refused(tmp_path: Path) -> None:
    _, path = written("gemma-3-270m-it", tmp_path)
    with path.open("rb") as file:
        head = file.read(open_gguf(path).tensors[0].offset + 64)
    cut = tmp_path / "cut.gguf"
    for n_bytes in (*range(0, 200, 7), *range(200, len(head), 997)):
        cut.write_bytes(head[:n_bytes])
        with pytest.raises(ModelError):
            readers.read(str(cut))


def test_a_window_whose_layers_are_unknown_is_refused_by_its_key(tmp_path: Path) -> None:
    model = catalogue.load().get("qwen3-8b")
    metadata = {
        k.replace("qwen3.", "newarch."): v
        for k, v in files.header(model, "qwen3", list(files.tensors_of(model))).items()
    }
    metadata["general.architecture"] = "newarch"
    pairs = [(t, f.id) for t, f in schemes.assign(schemes.get("F16"), model)]
    path = tmp_path / "m.gguf"
    files.write(path, metadata, pairs)
    assert readers.read(str(path))[0].caches() == model.caches()  # known parts: read, though the name is new
    files.write(path, {**metadata, "newarch.attention.sliding_window": 1024}, pairs)
    with pytest.raises(UnsupportedModel, match=r"newarch\.attention\.sliding_window"):
        readers.read(str(path))
    files.write(
        path,
        {**metadata, "newarch.attention.sliding_window": 1024, "newarch.attention.sliding_window_pattern": 4},
        pairs,
    )
    windows = [c.window_tokens for c in readers.read(str(path))[0].caches()]
    assert windows == [1024, 1024, 1024, None] * 9


def test_limits_are_above_every_catalogue_model() -> None:
    longest = max(catalogue.load().models, key=lambda m: m.n_layers)
    assert longest.n_layers * 40 < gguf_header.MAX_TENSORS


@pytest.mark.parametrize("part", ["time_mix_key", "attn_rel_b"])
def test_a_kind_of_layer_that_is_not_modelled_is_refused(part: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    embedding = files.tensor_entry("token_embd.weight", (8, 8))
    mixing = files.tensor_entry(f"blk.0.{part}.weight", (8, 8), 0, 256)
    entries = [
        files.ARCHITECTURE,
        files.entry("llama.block_count", 4, struct.pack("<I", 1)),
        files.entry("llama.embedding_length", 4, struct.pack("<I", 8)),
    ]
    path.write_bytes(files.assemble(entries, [embedding, mixing], 512))
    with pytest.raises(UnsupportedModel, match=rf"blk\.0\.\*{part[:7]}"):
        readers.read(str(path))


def test_a_stale_file_type_does_not_name_the_mix(tmp_path: Path) -> None:
    _, path = written("qwen3-0.6b", tmp_path)
    raw = path.read_bytes()
    key = raw.index(b"general.file_type") + len(b"general.file_type") + 4
    # 1: F16, over tensors of Q4_K and Q6_K
    path.write_bytes(raw[:key] + struct.pack("<I", 1) + raw[key + 4 :])
    assert readers.read(str(path))[1].label in ("Q4_K", "Q6_K")
