"""Laws of described machines: words in, a Machine or one clear sentence out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwdb import machine_file
from hwdb.describe import counted, machine
from hwdb.errors import AmbiguousDevice, BrokenMachineFile, HardwareError

GIB = 1 << 30


def ids(described):
    return [device.id for device in described.devices]


def test_counts_and_mixed_lists():
    assert ids(machine("2x3090")) == ["geforce-rtx-3090"] * 2
    assert ids(machine(["2 x rtx 3090", "rtx 4060"])) == ["geforce-rtx-3090"] * 2 + ["geforce-rtx-4060"]
    assert ids(machine("3090,rtx 4060 ti 16g")) == ["geforce-rtx-3090", "geforce-rtx-4060-ti-16gb"]
    assert machine("2x3090").name == "2x GeForce RTX 3090"


@given(st.integers(1, 1024), st.sampled_from(["x", "×", "*", " x "]))
def test_a_count_is_read_in_every_spelling(count, sign):
    assert counted(f"{count}{sign}3090") == (count, "3090")


@pytest.mark.parametrize("text", ["0x3090", "9999x3090"])
def test_absurd_counts_are_refused(text):
    with pytest.raises(HardwareError, match="1 to 1024"):
        machine(text)


def test_memory_chooses_among_devices_that_share_a_name():
    assert ids(machine("4060 ti", memory_bytes=16 * GIB)) == ["geforce-rtx-4060-ti-16gb"]
    with pytest.raises(AmbiguousDevice):
        machine("4060 ti")


def test_stated_memory_overrides_the_datasheet_and_says_so():
    (card,) = machine("rtx 3090", memory_bytes=20 * GIB).devices
    assert card.memory_bytes == 20 * GIB
    assert dict(card.origins)["memory_bytes"] == "user"


@pytest.mark.parametrize(
    "described", [lambda: machine("m2 max 64gb"), lambda: machine("m2 max", host_memory_bytes=64 * GIB)]
)
def test_the_memory_of_a_unified_chip_is_the_hosts(described):
    mac = described()
    assert mac.devices[0].memory_bytes == mac.host_memory_bytes == 64 * GIB
    assert mac.host.id == "apple-m2-max-cpu"
    assert mac.host.memory_bytes == 64 * GIB


def test_a_unified_chip_without_a_size_lists_the_sizes():
    with pytest.raises(HardwareError, match="comes with 32, 64, 96 GiB"):
        machine("m2 max")


def test_a_machine_without_gpu_is_its_processor():
    server = machine(cpu="epyc 9654", host_memory_bytes=384 * GIB)
    assert (server.devices, server.host.id, server.host.memory_bytes) == ((), "amd-epyc-9654", 384 * GIB)
    unnamed = machine(host_memory_bytes=16 * GIB).host
    assert (unnamed.kind, unnamed.bandwidth_bytes_per_s, unnamed.basis) == ("cpu", None, "assumed")


def test_the_processor_of_a_chip_is_its_cores():
    assert machine(cpu="m2 max", host_memory_bytes=64 * GIB).host.id == "apple-m2-max-cpu"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "no machine described"),
        ({"gpus": "epyc 9654"}, "a processor"),
        ({"cpu": "rtx 4090"}, r"not a processor: name it as a GPU \(`--gpu geforce-rtx-4090`\)"),
        ({"gpus": "3090", "memory_bytes": 0}, "positive"),
        ({"gpus": "3090", "host_memory_bytes": -1}, "positive"),
        ({"gpus": "nonsense 5"}, "no device is called"),
    ],
)
def test_what_is_no_machine_gets_one_line(arguments, sentence):
    with pytest.raises(HardwareError, match=sentence) as caught:
        machine(**arguments)
    assert "\n" not in str(caught.value)


FILE = """\
name: two used cards
gpus:
  - 2x rtx 3090
  - {device: rtx 4060, bandwidth_gb_per_s: 250}
  - {name: My board, memory_gib: 20, bandwidth_gb_per_s: 640, fp16_tensor_tflops: 80, count: 2, pcie: 4.0 x8}
cpu: ryzen 9 7950x
host_memory_gib: 64
free_gib: [22, 23, 7, 19, 19]
"""


def test_a_machine_file_holds_known_changed_and_own_devices(tmp_path):
    path = tmp_path / "machine.yaml"
    path.write_text(FILE)
    read = machine_file.read(path)
    assert ids(read) == ["geforce-rtx-3090"] * 2 + ["geforce-rtx-4060"] + ["my-board"] * 2
    changed, own = read.devices[2], read.devices[3]
    assert changed.bandwidth_bytes_per_s == 250e9
    assert dict(changed.origins)["bandwidth_bytes_per_s"] == "user"
    assert changed.memory_bytes == 8 * GIB
    assert (own.source, own.memory_bytes, own.fp16_tensor_flops) == ("user", 20 * GIB, 80e12)
    assert (read.host.id, read.host_memory_bytes, read.free_bytes[0]) == (
        "amd-ryzen-9-7950x",
        64 * GIB,
        22 * GIB,
    )


def test_a_machine_file_without_a_name_is_called_by_its_counted_devices():
    assert machine_file.parse("gpus: [2x 3090, rtx 4060]").name == machine(["2x3090", "rtx 4060"]).name
    assert machine_file.parse("gpus: 2x3090").name == "2x GeForce RTX 3090"


def test_a_machine_file_of_a_mac():
    mac = machine_file.parse("gpus: m2 max 64gb")
    assert (mac.host_memory_bytes, mac.host.id) == (64 * GIB, "apple-m2-max-cpu")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("gpus: [3090]\nfoo: 1\n", "m.yaml:2: foo: unknown key"),
        ("gpus:\n  - {nme: A}\n", "m.yaml:2: gpus.0.nme: unknown key"),
        ("gpus:\n  - {name: A, memory_gib: -3}\n", "m.yaml:2: gpus.0.memory_gib"),
        ("gpus:\n  - {device: 3090,\n     pcie: bla}\n", "m.yaml:3: gpus.0.pcie"),
        ("gpus: [3090]\ngpus: [3080]\n", "m.yaml:2: `gpus` occurs twice"),
        ("a: &a [*a]\n", "m.yaml:1: YAML anchors"),
        ("a: &a x\nb: [*a, *a]\n", "m.yaml:1: YAML anchors"),
        ("[" * 50 + "]" * 50, "nested too deeply"),
        ("gpus: [", "m.yaml:1: not YAML"),
        ("a: !!python/object/apply:os.system [x]\n", "m.yaml:1"),
        ("- 1\n", "m.yaml:1: not a mapping"),
        ("", "m.yaml:1: not a mapping"),
        ("--- {}\n--- {}\n", "more than one document"),
        ("gpus: nonsense\n", "no device is called `nonsense`"),
        ("gpus: [{name: A}]\n", "needs memory_gib"),
        ("gpus: [3090]\nfree_gib: [1, 2]\n", "2 numbers for 1 devices"),
        ("host_memory_gib: 1e999\n", "m.yaml:1: host_memory_gib"),
        ("name: x\n", "no machine described"),
        ("\x00", "not YAML"),
    ],
)
def test_a_broken_machine_file_gets_one_line_with_its_place(text, sentence):
    with pytest.raises(BrokenMachineFile) as caught:
        machine_file.parse(text, "m.yaml")
    assert sentence in str(caught.value)
    assert str(caught.value).startswith("m.yaml")
    assert "\n" not in str(caught.value)


def test_a_missing_binary_or_huge_machine_file_gets_one_line(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "huge").write_bytes(b"#" * (2 << 20))
    for name, sentence in (("none", "No such file"), ("binary", "not UTF-8"), ("huge", "larger than")):
        with pytest.raises(BrokenMachineFile, match=sentence):
            machine_file.read(tmp_path / name)


@given(st.text(max_size=60))
def test_any_text_is_a_machine_or_a_broken_machine_file(text):
    said = "one line"
    try:
        machine_file.parse(text)
    except BrokenMachineFile as error:
        said = str(error)
    assert "\n" not in said
