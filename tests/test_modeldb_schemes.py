"""Laws of schemes: every tensor gets a format, more nominal bits never cost fewer bytes,
unknown names are refused."""

import pytest

from modeldb import catalogue, formats, schemes
from modeldb.errors import UnknownScheme
from modeldb.tensor import Format

LADDERS = (
    ("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0", "F16", "F32"),
    ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_M", "IQ3_XXS", "IQ3_S", "IQ4_XS", "IQ4_NL"),
    ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
    ("gptq-2bit-g128", "gptq-3bit-g128", "gptq-4bit-g128", "gptq-8bit-g128", "bf16"),
    ("mlx-2bit-g64", "mlx-3bit-g64", "mlx-4bit-g64", "mlx-5bit-g64", "mlx-6bit-g64", "mlx-8bit-g64"),
    ("exl2-2.5bpw", "exl2-4bpw", "exl2-8bpw"),
)


def n_bytes(model_name: str, scheme_id: str) -> int:
    pairs = schemes.assign(schemes.get(scheme_id), catalogue.load().resolve(model_name))
    return sum(f.n_bytes(t.shape) for t, f in pairs)


@pytest.mark.parametrize("ladder", LADDERS, ids=lambda ladder: ladder[0])
@pytest.mark.parametrize("model", ["llama-3.1-8b-instruct", "qwen3-30b-a3b", "qwen2.5-1.5b-instruct"])
def test_more_nominal_bits_never_cost_fewer_bytes(model, ladder):
    # for widths that blocks divide: where they do not, llama.cpp falls back to wider types
    sizes = [n_bytes(model, scheme) for scheme in ladder]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("scheme", list(schemes.SCHEMES))
def test_assign_covers_every_tensor_once(scheme):
    model = catalogue.load().resolve("qwen3-30b-a3b")
    pairs = schemes.assign(schemes.get(scheme), model)
    assert len({t.name for t, _ in pairs}) == len(pairs)
    assert sum(t.n_elements for t, _ in pairs) == sum(t.n_elements for t in model.tensors())
    assert all(isinstance(f, Format) and f.n_bytes(t.shape) > 0 for t, f in pairs)


def test_awq_bytes_equal_the_closed_form_of_its_layout():
    # Qwen2.5-7B: 28 layers of 3584 wide, 512 for keys and for values, 18944 inner, vocabulary 152064, untied
    h, kv, inner, vocab = 3584, 512, 18944, 152064
    linear = 28 * (2 * h * h + 2 * h * kv + 3 * h * inner)
    other = 2 * vocab * h + 28 * (2 * h + h + 2 * kv) + h
    assert n_bytes("qwen2.5-7b-instruct", "awq-4bit-g128") == linear * (4 + 20 / 128) / 8 + 2 * other


def test_native_mxfp4_quantizes_routed_experts_only():
    # gpt-oss-20b: 24 layers, 32 experts of three 2880 x 2880 matrices
    model = catalogue.load().resolve("gpt-oss-20b")
    experts = 24 * 32 * 3 * 2880 * 2880
    others = sum(t.n_elements for t in model.tensors()) - experts
    assert n_bytes("gpt-oss-20b", "mxfp4-hf") == experts * 4.25 / 8 + 2 * others


def test_embeddings_head_norms_and_routers_of_checkpoints_stay_16_bit():
    model = catalogue.load().resolve("qwen3-30b-a3b")
    for scheme in ("awq-4bit-g128", "fp8-per-tensor", "bnb-nf4"):
        for tensor, f in schemes.assign(schemes.get(scheme), model):
            if tensor.role in ("embedding", "head", "norm", "router"):
                assert f.bits_per_weight == 16, tensor.name


def test_names_are_found_without_regard_to_case_and_gguf_and_checkpoints_do_not_mix():
    assert schemes.get("q4_k_m").id == "Q4_K_M"
    assert schemes.get("bf16").container == "safetensors"
    assert schemes.get("BF16").container == "gguf"
    assert schemes.get("exl2-4.7bpw").nominal_bits == 4.7


def test_labels_whose_rule_is_not_public_say_so():
    scheme = schemes.get("UD-Q4_K_XL")
    assert scheme.approximate
    assert scheme.bits_range is not None
    assert scheme.bits_range[0] <= scheme.nominal_bits <= scheme.bits_range[1]
    assert not schemes.get("Q4_K_M").approximate


@pytest.mark.parametrize("name", ["Q9_Z", "", "exl2-99bpw", "made-up"])
def test_unknown_schemes_and_formats_are_refused(name):
    with pytest.raises(UnknownScheme):
        schemes.get(name)
    with pytest.raises(UnknownScheme):
        formats.get(name)


def test_a_block_is_charged_whole():
    assert formats.get("Q4_K").n_bytes((256, 2)) == 288
    assert formats.get("fp8-channel").n_bytes((128, 4)) == 128 * 4 + 4 * 4
    assert formats.kv("q8_0").bits_per_weight == 8.5
