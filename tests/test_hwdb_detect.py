"""Laws of detection, on recorded outputs: what was read wins, what is unknown stays so, nothing raises."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from hwdb import probe_cpu
from hwdb.detect import detect
from hwdb.system import System
from hwdb.user_devices import Measurement, apply, folder, read_all, remove, write

DATA = Path(__file__).parent / "data" / "hwdb"
GIB = 1 << 30


@pytest.fixture(autouse=True)
def own_configuration_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_PLAN_CONFIG_DIR", str(tmp_path / "configuration"))


class FakeNvml:
    """NVML over a recording; what a device does not have raises, as in the real binding."""

    NVML_CLOCK_SM = 1

    def __init__(self, file: str) -> None:
        self.gpus = json.loads((DATA / file).read_text())
        self.closed = False

    def nvmlShutdown(self):
        self.closed = True

    def nvmlDeviceGetCount(self):
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index):
        return self.gpus[index]

    def nvmlDeviceGetName(self, gpu):
        return gpu["name"].encode()

    def nvmlDeviceGetMemoryInfo(self, gpu):
        return SimpleNamespace(total=_told(gpu["total"]), free=_told(gpu["free"]))

    def nvmlDeviceGetPciInfo(self, gpu):
        return SimpleNamespace(busId=gpu["bus"].encode())

    def nvmlDeviceGetCudaComputeCapability(self, gpu):
        return gpu["capability"]

    def nvmlDeviceGetEnforcedPowerLimit(self, gpu):
        return _told(gpu["power_mw"])

    def nvmlDeviceGetMaxClockInfo(self, gpu, clock):
        return gpu["clock_mhz"]

    def nvmlDeviceGetMaxPcieLinkGeneration(self, gpu):
        return _told(gpu["gen_max"])

    def nvmlDeviceGetCurrPcieLinkWidth(self, gpu):
        return _told(gpu["width"])

    def nvmlDeviceGetNvLinkState(self, gpu, link):
        return _told(gpu["nvlinks"])[link]


def _told(value):
    if value is None:
        raise RuntimeError("Not Supported")
    return value


def tree(tmp_path: Path, *names: str) -> Path:
    """The recorded directory trees, unpacked."""
    root = tmp_path / "root"
    root.mkdir(exist_ok=True)
    for name in names:
        for part in (DATA / name).read_text().split("==> ")[1:]:
            path, _, text = part.partition("\n")
            file = root / path.strip()
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    return root


def system(root: Path, *, nvml=None, commands=None, platform="linux") -> System:
    answers = commands or {}
    return System(
        root=root,
        platform=platform,
        run=lambda command: answers.get(command[0] if command[0] != "sysctl" else " ".join(command)),
        nvml=lambda: nvml,
        memory=lambda: (32 * GIB, 20 * GIB),
        physical_cores=lambda: 8,
    )


def test_nvml_numbers_win_and_the_catalogue_fills_the_rest(tmp_path):
    library = FakeNvml("nvml_4090_and_4060.json")
    found = detect(system(tmp_path, nvml=library))
    first, second = found.devices
    assert (first.id, second.id) == ("geforce-rtx-4090", "geforce-rtx-4060")
    assert first.memory_bytes == 25757220864
    assert second.pcie.name == "PCIe 4.0 x4"  # the slot, not the datasheet's x8
    assert found.free_bytes == (25201344512, 7903117312)
    origins = dict(second.origins)
    assert origins["memory_bytes"] == origins["pcie"] == "nvml"
    assert origins["bandwidth_bytes_per_s"] == "catalogue: geforce-rtx-4060"
    assert library.closed


def test_equal_gpus_are_counted_and_nvlink_is_claimed_only_where_it_is_up(tmp_path):
    found = detect(system(tmp_path, nvml=FakeNvml("nvml_2x3090_nvlink.json")))
    assert found.name == "2x GeForce RTX 3090"
    assert [d.peer.bytes_per_s for d in found.devices] == [56.25e9] * 2
    assert found.devices[0].power_w == 300


def test_a_bridge_that_is_not_there_is_no_peer_link(tmp_path):
    library = FakeNvml("nvml_2x3090_nvlink.json")
    for gpu in library.gpus:
        gpu["nvlinks"] = [0, 0, 0, 0]
    found = detect(system(tmp_path, nvml=library))
    assert [d.peer for d in found.devices] == [None, None]


def test_unified_memory_of_gb10_is_the_hosts(tmp_path):
    found = detect(system(tree(tmp_path, "epyc_vm.tree"), nvml=FakeNvml("nvml_gb10.json")))
    (gpu,) = found.devices
    assert (gpu.id, gpu.unified_memory, gpu.memory_bytes) == ("dgx-spark-gb10", True, found.host_memory_bytes)
    assert found.free_bytes == (found.host_free_bytes,)


def test_an_unknown_gpu_keeps_what_was_read_and_has_no_rates(tmp_path):
    found = detect(system(tmp_path, nvml=FakeNvml("nvml_unknown.json")))
    (gpu,) = found.devices
    assert (gpu.name, gpu.memory_bytes, gpu.capability) == ("NVIDIA GeForce RTX 9999 Ti", 48 * GIB, "sm_150")
    assert (gpu.bandwidth_bytes_per_s, gpu.fp16_tensor_flops) == (None, None)
    assert any("not in the catalogue" in note for note in found.notes)


def test_nvidia_smi_stands_in_and_memory_tells_variants_apart(tmp_path):
    table = (DATA / "nvidia_smi.csv").read_text()
    found = detect(system(tmp_path, commands={"nvidia-smi": table}))
    assert [d.id for d in found.devices] == [
        "geforce-rtx-3080-12gb",
        "geforce-rtx-4070-laptop",
        "h100-sxm5-80gb",
    ]
    assert [d.laptop for d in found.devices] == [False, True, False]
    assert found.devices[1].power_w == 115  # nvidia-smi said [N/A]: the datasheet's
    assert found.free_bytes[0] == 11986 << 20


def test_an_integrated_gpu_is_not_counted_beside_a_discrete_one(tmp_path):
    found = detect(system(tree(tmp_path, "amd_7900xtx_with_igpu.tree")))
    (card,) = found.devices
    assert (card.id, card.memory_bytes, card.capability) == ("radeon-rx-7900-xtx", 25753026560, "gfx1100")
    assert card.compute_units == 96
    assert card.pcie.name == "PCIe 4.0 x16"  # at rest it runs at 2.5 GT/s
    assert found.free_bytes == (25753026560 - 1073741824,)
    assert any("integrated" in note for note in found.notes)


def test_an_apu_has_its_carve_out_and_what_the_driver_maps(tmp_path):
    found = detect(system(tree(tmp_path, "amd_strix_halo.tree")))
    (apu,) = found.devices
    assert apu.id == "strix-halo-radeon-8060s-ryzen-ai-max-395"
    assert (apu.integrated, apu.unified_memory, apu.capability) == (True, True, "gfx1151")
    assert apu.memory_bytes == 536870912 + 118111600640
    assert found.host.name == "AMD Ryzen AI Max+ 395 CPU"


def test_intel_discrete_beside_integrated(tmp_path):
    found = detect(system(tree(tmp_path, "intel_arc.tree")))
    (card,) = found.devices
    assert (card.id, card.memory_bytes, card.pcie.name) == ("arc-b580", 12734955520, "PCIe 4.0 x8")


def test_the_i915_driver_tells_total_and_free_memory(tmp_path):
    root = tree(tmp_path, "intel_arc.tree")
    card = root / "sys/class/drm/card1"
    (card / "device/device").write_text("0x56a0")
    (card / "device/tile0/physical_vram_size_bytes").unlink()
    (card / "lmem_total_bytes").write_text("17032011776")
    (card / "lmem_avail_bytes").write_text("16000000000")
    found = detect(system(root))
    assert [(d.id, d.memory_bytes) for d in found.devices] == [("arc-a770-16gb", 17032011776)]
    assert found.free_bytes == (16000000000,)


def test_an_integrated_gpu_nobody_knows_leaves_the_processor(tmp_path):
    root = tree(tmp_path, "intel_arc.tree", "epyc_vm.tree")
    for file in (root / "sys/class/drm/card1/device").glob("*"):
        if file.is_file():
            file.unlink()
    found = detect(system(root))
    assert found.devices == ()
    assert found.host.name == "AMD EPYC"
    assert any("processor is used" in note for note in found.notes)


def mac(profile: str) -> dict[str, str]:
    return {
        "system_profiler": (DATA / profile).read_text(),
        "sysctl -n hw.memsize": "34359738368\n",
        "sysctl -n machdep.cpu.brand_string": "Apple M2 Max\n",
        "sysctl -n hw.optional.arm64": "1\n",
        "sysctl -n iogpu.wired_limit_mb": "0\n",
    }


def test_a_mac_is_told_apart_by_its_gpu_cores(tmp_path):
    found = detect(system(tmp_path, commands=mac("system_profiler_m2_max.json"), platform="darwin"))
    (chip,) = found.devices
    assert (chip.id, chip.unified_memory) == ("apple-m2-max-30-core-gpu", True)
    assert chip.memory_bytes == found.host_memory_bytes == 32 * GIB
    assert found.host.id == "apple-m2-max-cpu"
    assert (found.operating_system, found.free_bytes) == ("macos", (20 * GIB,))


def test_a_mac_with_a_core_count_nobody_listed_has_no_rates(tmp_path):
    commands = mac("system_profiler_m2_max.json")
    commands["system_profiler"] = commands["system_profiler"].replace('"30"', '"31"')
    (chip,) = detect(system(tmp_path, commands=commands, platform="darwin")).devices
    assert (chip.compute_units, chip.fp32_flops, chip.memory_bytes) == (31, None, 32 * GIB)


def test_an_intel_mac_has_a_discrete_and_an_integrated_gpu(tmp_path):
    commands = mac("system_profiler_intel_mac.json") | {"sysctl -n hw.optional.arm64": None}
    (card,) = detect(system(tmp_path, commands=commands, platform="darwin")).devices
    assert (card.name, card.memory_bytes, card.bandwidth_bytes_per_s) == (
        "AMD Radeon Pro 5500M",
        8 * GIB,
        None,
    )


def test_a_virtual_machine_gets_only_what_it_shows(tmp_path):
    host = detect(system(tree(tmp_path, "epyc_vm.tree"))).host
    assert (host.name, host.vendor, host.cpu_cores) == ("AMD EPYC", "AMD", 4)
    assert {"avx2", "avx512", "avx512_vnni"} <= set(host.cpu_isa)
    assert (host.bandwidth_bytes_per_s, host.memory_channels) == (None, None)
    assert host.fp32_flops == pytest.approx(4 * 64 * 2.596e9, rel=1e-3)
    assert dict(host.origins)["fp32_flops"] == "derived: 4 cores x 64 FLOP/cycle (avx512_wide) x 2.6 GHz"


@pytest.mark.parametrize(
    ("vendor", "family", "model", "name", "wide"),
    [
        ("AuthenticAMD", "26", "68", "AMD Ryzen 9 9950X 16-Core Processor", True),
        ("AuthenticAMD", "26", "36", "AMD Ryzen AI 9 HX 370", False),
        ("AuthenticAMD", "25", "97", "AMD Ryzen 9 7950X 16-Core Processor", False),
        ("GenuineIntel", "6", "143", "Intel(R) Xeon(R) Platinum 8480+", True),
        ("GenuineIntel", "6", "85", "Intel(R) Xeon(R) Gold 6230 CPU @ 2.10GHz", True),
        ("GenuineIntel", "6", "85", "Intel(R) Xeon(R) Silver 4210 CPU @ 2.20GHz", False),
        ("GenuineIntel", "6", "140", "11th Gen Intel(R) Core(TM) i7-1165G7 @ 2.80GHz", False),
        ("GenuineIntel", "", "", "Intel", False),
    ],
)
def test_which_cores_multiply_512_bits_twice_a_cycle(vendor, family, model, name, wide):
    first = {"vendor_id": vendor, "cpu family": family, "model": model, "model name": name}
    assert probe_cpu._isa(System(), first | {"flags": "avx2 fma avx512f"}).count("avx512_wide") == wide
    assert "avx512_wide" not in probe_cpu._isa(System(), first | {"flags": "avx2 fma"})


def test_two_sockets_are_twice_the_catalogues_processor(tmp_path):
    found = detect(system(tree(tmp_path, "xeon_2s.tree")))
    host = found.host
    assert (host.id, host.cpu_cores) == ("intel-xeon-e5-2690v3", 24)
    assert host.bandwidth_bytes_per_s == pytest.approx(2 * 68.3e9)
    assert host.fp32_flops == pytest.approx(24 * 32 * 2.6e9, rel=1e-3)
    assert "2 NUMA nodes" in found.notes


def test_control_groups_limit_cores_and_memory(tmp_path):
    found = detect(system(tree(tmp_path, "ryzen_cgroup2.tree")))
    assert (found.host.cpu_cores, found.host_memory_bytes, found.host_free_bytes) == (2, 8 * GIB, 6 * GIB)
    assert found.host.bandwidth_bytes_per_s is None  # a share of the socket's, nobody knows which
    assert found.host.fp32_flops == pytest.approx(2 / 6 * 0.73e12)


def test_control_groups_of_version_1_too(tmp_path):
    found = detect(system(tree(tmp_path, "cgroup1.tree")))
    assert (found.host.cpu_cores, found.host_memory_bytes, found.host_free_bytes) == (3, 4 * GIB, 3 * GIB)
    assert found.host.fp32_flops == 3 * 16 * 2e9


def test_an_arm_board_is_known_by_its_device_tree(tmp_path):
    host = detect(system(tree(tmp_path, "raspberry_pi_5.tree"))).host
    assert (host.id, host.cpu_cores, host.bandwidth_bytes_per_s) == ("raspberry-pi-5", 4, 17.1e9)
    assert "dotprod" in host.cpu_isa


@pytest.mark.parametrize(
    ("table", "channels", "bandwidth"),
    [
        ("dmidecode_desktop.txt", 2, 2 * 6000e6 * 8),
        ("dmidecode_laptop.txt", 4, 4 * 6400e6 * 4),
        ("dmidecode_server.txt", 16, 16 * 3200e6 * 8),
        ("dmidecode_qemu.txt", None, None),
    ],
)
def test_memory_modules_give_the_bandwidth_where_they_are_told(tmp_path, table, channels, bandwidth):
    commands = {"dmidecode": (DATA / table).read_text()}
    host = detect(system(tree(tmp_path, "epyc_vm.tree"), commands=commands)).host
    assert (host.memory_channels, host.bandwidth_bytes_per_s) == (channels, bandwidth)


def test_ecc_machines_list_their_channels(tmp_path):
    root = tree(tmp_path, "epyc_vm.tree")
    for slot, (channel, megabytes) in enumerate([(0, 16384), (1, 16384), (1, 0), (2, 0)]):
        folder_of_slot = root / f"sys/devices/system/edac/mc/mc0/dimm{slot}"
        folder_of_slot.mkdir(parents=True)
        (folder_of_slot / "dimm_location").write_text(f"channel {channel} slot 0\n")
        (folder_of_slot / "size").write_text(f"{megabytes}\n")
    host = detect(system(root)).host
    assert (host.memory_channels, host.bandwidth_bytes_per_s) == (2, None)  # no speed is told


def test_windows_and_wsl_are_told_apart(tmp_path):
    answer = "\r\n    ProcessorNameString    REG_SZ    AMD Ryzen 9 7950X 16-Core Processor\r\n"
    windows = detect(system(tmp_path, commands={"reg": answer}, platform="win32"))
    assert (windows.operating_system, windows.host.id, windows.host_memory_bytes) == (
        "windows",
        "amd-ryzen-9-7950x",
        32 * GIB,
    )
    root = tree(tmp_path, "epyc_vm.tree")
    (root / "proc/version").write_text("Linux version 5.15.153.1-microsoft-standard-WSL2")
    assert detect(system(root)).operating_system == "wsl"


def test_nothing_raises_where_everything_fails(tmp_path):
    def broken(*_arguments):
        raise OSError("the driver is gone")

    nothing = System(tmp_path, "linux", broken, broken, broken, broken)
    found = detect(nothing)
    assert found.devices == ()
    assert found.origin == "detected"
    assert any("the driver is gone" in note for note in found.notes)


def test_hostile_files_do_not_stop_detection(tmp_path):
    root = tree(tmp_path, "amd_7900xtx_with_igpu.tree", "epyc_vm.tree")
    for file in sorted(root.rglob("*")):
        if file.is_file():
            before = file.read_bytes()
            for junk in (b"", b"\xff\xfe\x00", b"-1", b"9" * 400, b"0xzz"):
                file.write_bytes(junk)
                assert detect(system(root)).origin == "detected"
            file.write_bytes(before)


def test_this_machine_is_detected():
    found = detect()
    assert found.host_memory_bytes > GIB // 4
    assert found.host.cpu_cores >= 1
    told = dict(found.host.origins)
    assert {"cpu_cores", "memory_bytes"} <= set(told)


MEASURED = Measurement(
    "AMD EPYC", "cpu", "2026-11-21", "read bandwidth", cpu_cores=4, bandwidth_bytes_per_s=42e9
)


def test_a_measurement_beats_everything_else_for_the_same_processor(tmp_path):
    write(MEASURED)
    host = detect(system(tree(tmp_path, "epyc_vm.tree"))).host
    assert (host.bandwidth_bytes_per_s, host.basis) == (42e9, "measured")
    assert dict(host.origins)["bandwidth_bytes_per_s"].startswith("measured 2026-11-21")
    assert remove(MEASURED)
    assert not remove(MEASURED)
    assert detect(system(tmp_path / "root")).host.bandwidth_bytes_per_s is None


def test_measurements_are_kept_whole_and_only_for_their_device():
    path = write(MEASURED)
    assert path.parent == folder()
    assert read_all() == ((MEASURED,), ())
    assert [p.name for p in folder().iterdir()] == ["amd-epyc-4c.json"]
    host = detect().host
    other = apply(host, (Measurement("another", "cpu", "2026", "x", bandwidth_bytes_per_s=1.0),))
    assert other == host


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"schema_version": 9}', '{"schema_version": 1, "name": 3}', "\x00"]
    + [
        json.dumps({"schema_version": 1, "name": "a", "kind": "cpu", "date": "d", "method": "m"} | extra)
        for extra in ({"fp32_flops": -1}, {"fp32_flops": "fast"}, {"surprise": 1}, {"cpu_cores": True})
    ],
)
def test_a_broken_measurement_is_a_remark(text):
    folder().mkdir(parents=True)
    (folder() / "broken.json").write_text(text)
    kept, remarks = read_all()
    assert kept == ()
    assert len(remarks) == 1
    assert any("ignored" in note for note in detect().notes)
