"""Laws of the device catalogue: what names mean, and what numbers may be."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from hwdb import pcie
from hwdb.catalogue import COMPILED, load
from hwdb.compile import compile_text
from hwdb.device import Device, Link
from hwdb.errors import AmbiguousDevice, HardwareError, UnknownDevice
from hwdb.names import key, split_memory

DATA = Path(__file__).parent / "data" / "hwdb"
GIB = 1 << 30
NAMES = (DATA / "names.txt").read_text().split()
IDS = (DATA / "device_ids.txt").read_text().split()
RATES = [f.name for f in fields(Device) if f.name.endswith(("_flops", "_ops"))]


def test_the_compiled_catalogue_equals_the_yaml():
    assert compile_text() == COMPILED.read_text(encoding="utf-8")


def test_the_yaml_is_plain_enough_to_edit_by_hand():
    for path in COMPILED.parent.glob("*.yaml"):
        tokens = [type(token).__name__ for token in yaml.scan(path.read_text(encoding="utf-8"))]
        assert not {"AnchorToken", "AliasToken", "TagToken"} & set(tokens), path.name


def test_every_collected_device_is_in_the_catalogue():
    assert len(IDS) == 264
    assert [i for i in IDS if load().get(i).id != i] == []


@pytest.mark.parametrize("name", NAMES)
def test_every_hardware_label_of_the_measurements_resolves(name):
    assert load().resolve(name).name


@pytest.mark.parametrize(
    ("name", "device_id"),
    [
        ("rtx 4060", "geforce-rtx-4060"),
        ("RTX4060", "geforce-rtx-4060"),
        ("4060", "geforce-rtx-4060"),
        ("NVIDIA GeForce RTX 4090", "geforce-rtx-4090"),
        ("rtx 4090 laptop", "geforce-rtx-4090-laptop"),
        ("NVIDIA GeForce RTX 4070 Laptop GPU", "geforce-rtx-4070-laptop"),
        ("rtx 4060 ti 16g", "geforce-rtx-4060-ti-16gb"),
        ("3090", "geforce-rtx-3090"),
        ("3060", "geforce-rtx-3060-12gb"),
        ("a770", "arc-a770-16gb"),
        ("ryzen 5600", "amd-ryzen-5-5600"),
        ("rtx 3080 12 GB", "geforce-rtx-3080-12gb"),
        ("a100 80gb", "a100-80gb"),
        ("nvidia-a100-80gb", "a100-80gb"),
        ("a100-sxm4-80gb", "a100-sxm4-80gb"),
        ("NVIDIA A100-SXM4-80GB", "a100-sxm4-80gb"),
        ("NVIDIA A100 80GB PCIe", "a100-pcie-80gb"),
        ("NVIDIA A100-PCIE-40GB", "a100-pcie-40gb"),
        ("h100", "h100-sxm5-80gb"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm5-80gb"),
        ("NVIDIA H100 PCIe", "h100-pcie-80gb"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx-6000-ada"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "rtx-pro-6000-blackwell-workstation"),
        ("Tesla T4", "tesla-t4"),
        ("Tesla V100-SXM2-32GB", "tesla-v100-sxm2-32gb"),
        ("NVIDIA GB10", "dgx-spark-gb10"),
        ("m1 max", "apple-m1-max-32-core-gpu"),
        ("m1 max 24c", "apple-m1-max-24-core-gpu"),
        ("M1", "apple-m1-8-core-gpu"),
        ("Apple M2 Ultra", "apple-m2-ultra-76-core-gpu"),
        ("7900 xtx", "radeon-rx-7900-xtx"),
        ("AMD Radeon RX 7900 XTX", "radeon-rx-7900-xtx"),
        ("strix halo", "strix-halo-radeon-8060s-ryzen-ai-max-395"),
        ("ryzen ai max 395", "strix-halo-radeon-8060s-ryzen-ai-max-395"),
        ("arc b580", "arc-b580"),
        ("mi300x", "instinct-mi300x-192gb"),
        ("epyc 9654", "amd-epyc-9654"),
        ("AMD EPYC 9654 96-Core Processor", "amd-epyc-9654"),
        ("Intel(R) Xeon(R) CPU E5-2690 v3 @ 2.60GHz", "intel-xeon-e5-2690v3"),
        ("12th Gen Intel(R) Core(TM) i5-12400", "intel-core-i5-12400"),
        ("13th Gen Intel(R) Core(TM) i9-13900K", "intel-core-i9-13900k"),
        ("AMD Ryzen Threadripper PRO 5975WX 32-Cores", "amd-threadripper-pro-5975wx"),
    ],
)
def test_what_people_type_and_tools_print_resolves(name, device_id):
    assert load().resolve(name).id == device_id


@pytest.mark.parametrize("name", ["a100", "rtx 4060 ti", "RTX 5060 Ti", "v100", "m3 max", "rtx 6000", "mi50"])
def test_an_ambiguous_name_lists_its_choices_and_each_choice_resolves(name):
    with pytest.raises(AmbiguousDevice) as caught:
        load().resolve(name)
    assert len(caught.value.choices) > 1
    assert [load().resolve(choice).id for choice in caught.value.choices] == list(caught.value.choices)


@pytest.mark.parametrize(
    "name", ["", "gpu", "nvidia", "rtx 4061", "M9 Max", "ATI M1", "Mobility M1", "x" * 10_000]
)
def test_an_unknown_name_is_never_matched_by_similarity(name):
    with pytest.raises(UnknownDevice) as caught:
        load().resolve(name)
    for suggestion in caught.value.suggestions:
        assert key(suggestion) != key(name)


def test_close_names_are_suggested():
    with pytest.raises(UnknownDevice, match=r"did you mean .*3090"):
        load().resolve("rtx 3091")


def test_m1_is_the_apple_chip():
    assert {device.vendor for device in load().candidates("M1")} == {"Apple"}


def test_a_memory_size_that_the_device_does_not_have_is_refused():
    with pytest.raises(HardwareError, match="comes with 24, 48 GiB, not 12"):
        load().resolve("rtx 4090 12gb")


def test_a_memory_size_chooses_the_option():
    device = load().resolve("m1 max 64gb")
    assert (device.id, device.memory_bytes) == ("apple-m1-max-32-core-gpu", 64 * GIB)
    assert load().resolve("m3 max 128g").id == "apple-m3-max-40-core-gpu"


def test_every_offered_name_resolves_or_is_ambiguous():
    known = load()
    for name in known.names():
        group = known.candidates(name)
        assert group
        if len(group) == 1:
            assert known.resolve(name) == group[0]


def test_no_alias_belongs_to_two_devices():
    owners: dict[str, str] = {}
    for device in load().devices:
        for name in (device.id, device.name, *load().aliases(device.id)):
            assert owners.setdefault(key(name), device.id) == device.id


@given(st.text(max_size=40))
@example("0:G")
@example("0\x1bG")
def test_the_spelling_rule_ignores_case_and_is_stable(text):
    assert key(key(text)) in (key(text), "")  # a key may itself be a noise word
    assert key(f"  {text.upper().lower()} ") == key(text.upper().lower())


@given(st.integers(1, 9999), st.sampled_from(["g", "gb", " GB", "GiB", " gib"]))
def test_a_memory_suffix_is_read_in_every_spelling(size, unit):
    assert split_memory(f"rtx 4090 {size}{unit}") == ("rtx 4090", size)


@pytest.mark.parametrize("device", load().devices, ids=lambda device: device.id)
def test_numbers_are_plausible(device):
    """Bounds hold for every processor and accelerator ever sold; a slip of units breaks them."""
    if device.memory_bytes:
        assert GIB <= device.memory_bytes <= 600 * GIB
    if device.bandwidth_bytes_per_s:
        assert 5e9 <= device.bandwidth_bytes_per_s <= 10e12
        for rate in RATES:
            if value := getattr(device, rate):
                assert 0.2 < value / device.bandwidth_bytes_per_s < 5_000, rate
    for rate in RATES:
        value = getattr(device, rate)
        assert value is None or 1e9 < value < 2e16, rate
    for one in (device.pcie, device.peer):
        assert one is None or 1e9 < one.bytes_per_s <= 1e12
    assert device.power_w is None or 3 <= device.power_w <= 1500
    assert device.release_year is None or 2008 <= device.release_year <= 2027
    assert device.source
    assert device.source_date
    assert device.basis in ("datasheet", "derived", "assumed")


@pytest.mark.parametrize("device", load().devices, ids=lambda device: device.id)
def test_rates_rise_as_numbers_narrow(device):
    """Matrix rates: FP16 at least half of FP32 vector, FP8 at least FP16, FP4 at least FP8."""
    ladder = [device.fp16_tensor_flops or device.bf16_tensor_flops, device.fp8_flops, device.fp4_flops]
    known = [rate for rate in ladder if rate]
    assert known == sorted(known)
    if device.fp16_tensor_flops and device.fp32_flops:
        assert device.fp16_tensor_flops >= device.fp32_flops / 2
    if device.fp16_acc16_flops and device.fp16_tensor_flops:
        assert 0.99 <= device.fp16_acc16_flops / device.fp16_tensor_flops <= 2.02
    if device.bf16_tensor_flops and device.fp16_tensor_flops:
        assert 0.4 <= device.bf16_tensor_flops / device.fp16_tensor_flops <= 1.01


def test_a_gpu_has_a_size_of_memory_and_a_chip_shares_its_hosts():
    for device in load().devices:
        if device.kind == "gpu":
            assert device.memory_bytes
            assert not device.unified_memory
        if device.kind in ("apu", "soc"):
            assert device.unified_memory
        if device.laptop and device.kind == "gpu":
            assert "Laptop" in device.name


def test_cpu_rates_are_the_stated_arithmetic():
    """Every derived FP32 rate of a processor equals the formula in its origin."""
    import re

    checked = 0
    for device in load().devices:
        origin = dict(device.origins).get("fp32_flops", "")
        match = re.search(
            r"(?:(\d+) (?:performance )?cores|cores) x .*?(\d+) FLOP/cycle.*? x ([\d.]+) GHz", origin
        )
        if device.kind == "cpu" and match and device.fp32_flops:
            cores = int(match[1]) if match[1] else device.cpu_cores
            expected = cores * int(match[2]) * float(match[3]) * 1e9
            assert device.fp32_flops == pytest.approx(expected, rel=0.08), device.id
            checked += 1
    assert checked > 40


def test_links_are_one_direction():
    h100 = load().get("h100-sxm5-80gb")
    assert h100.peer == Link("NVLink 4", 450e9)
    assert load().get("geforce-rtx-4060").pcie == Link("PCIe 4.0 x8", pytest.approx(15.754e9, rel=1e-3))


@pytest.mark.parametrize("text", ["", "4 x16", "9.0 x16", "4.0 x3", "x16", "4.0x16"])
def test_only_whole_pcie_links_are_read(text):
    if text == "4 x16":
        assert pcie.link(text) == pcie.of(4, 16)
    else:
        with pytest.raises(ValueError, match="PCI Express"):
            pcie.link(text)


def test_apple_variants_scale_with_their_cores():
    full, cut = load().get("apple-m2-max-38-core-gpu"), load().get("apple-m2-max-30-core-gpu")
    assert cut.fp32_flops / full.fp32_flops == pytest.approx(30 / 38, rel=0.01)
    assert cut.bandwidth_bytes_per_s == full.bandwidth_bytes_per_s
    assert dict(cut.origins)["fp32_flops"].startswith("derived")


@pytest.mark.parametrize("gib", [4, 6, 8, 10, 11, 12, 16, 20, 24, 32, 48, 80])
def test_a_memory_class_holds_cards_of_that_size(gib):
    cards = load().memory_class(gib * GIB)
    assert cards
    assert all(card.kind == "gpu" and card.release_year >= 2018 for card in cards)
    assert all(abs(card.memory_bytes / GIB - gib) <= 0.08 * gib for card in cards)
    assert [c.bandwidth_bytes_per_s for c in cards] == sorted(c.bandwidth_bytes_per_s for c in cards)


def test_8_gb_means_cards_people_own_in_either_unit():
    ids = {card.id for card in load().memory_class(8 * GIB)}
    assert {"geforce-rtx-4060", "geforce-rtx-3070", "radeon-rx-7600", "geforce-rtx-4060-laptop"} <= ids
    assert not ids & {"tesla-p4", "geforce-gtx-1080", "jetson-orin-nano-8gb"}
    assert ids == {card.id for card in load().memory_class(8_000_000_000)}


def test_a_size_nobody_sells_means_the_next_larger_card():
    assert load().memory_class(22 * GIB) == load().memory_class(24 * GIB)
    assert load().memory_class(2 * GIB) == load().memory_class(4 * GIB)
    assert load().memory_class(900 * GIB) == ()


def test_loading_imports_neither_yaml_nor_pydantic_nor_pandas():
    program = (
        "import sys; from hwdb.catalogue import load; load().resolve('rtx 4060'); "
        "print(*[m for m in ('yaml', 'pydantic', 'pandas', 'numpy', 'psutil', 'pynvml') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_a_name_claimed_twice_does_not_compile(tmp_path):
    entry = {"id": "a", "name": "A 1", "kind": "gpu", "source": "s", "source_date": "2026"}
    other = entry | {"id": "b", "name": "B 2", "aliases": ["a1"]}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump({"vendor": "V", "devices": [entry, other]}))
    (tmp_path / "shared_names.yaml").write_text("shared_names: []\n")
    with pytest.raises(HardwareError, match="belongs to `a`"):
        compile_text(tmp_path)
