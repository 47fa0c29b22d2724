"""One YAML entry, checked: the form in which people write devices. Imports pydantic; not on the hot path."""

from __future__ import annotations

from dataclasses import fields
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, field_validator

from hwdb.device import Basis, Device, Kind, Link
from hwdb.pcie import link

GIB, MIB, GIGA, TERA, MHZ = 1 << 30, 1 << 20, 1e9, 1e12, 1e6

Market = Literal["consumer", "laptop", "workstation", "datacenter", "server", "embedded", "mac"]

# YAML key -> (Device field, factor to base SI). Keys not listed here keep their name and value.
SCALED: dict[str, tuple[str, float]] = {
    "memory_gib": ("memory_bytes", GIB),
    "bandwidth_gb_per_s": ("bandwidth_bytes_per_s", GIGA),
    "fp32_tflops": ("fp32_flops", TERA),
    "fp16_tflops": ("fp16_flops", TERA),
    "fp16_tensor_tflops": ("fp16_tensor_flops", TERA),
    "fp16_acc16_tflops": ("fp16_acc16_flops", TERA),
    "bf16_tensor_tflops": ("bf16_tensor_flops", TERA),
    "fp8_tflops": ("fp8_flops", TERA),
    "fp8_acc16_tflops": ("fp8_acc16_flops", TERA),
    "int8_tops": ("int8_ops", TERA),
    "fp4_tflops": ("fp4_flops", TERA),
    "boost_mhz": ("boost_hz", MHZ),
    "l2_mib": ("l2_bytes", MIB),
    "l3_mib": ("l3_bytes", MIB),
}
INTEGERS = frozenset({"memory_bytes", "l2_bytes", "l3_bytes"})
DEVICE_FIELDS = frozenset(f.name for f in fields(Device))


class Entry(BaseModel):
    """A device as written in `hwdb/data/*.yaml` and in a machine file. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", strict=False)

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    name: str = Field(min_length=1)
    aliases: list[str] = []
    labels: list[str] = []
    pci_ids: list[str] = []
    kind: Kind
    market: Market | Literal[""] = ""
    laptop: bool = False
    integrated: bool = False
    architecture: str = ""
    capability: str = ""
    memory_gib: PositiveFloat | None = None
    memory_options_gib: list[PositiveInt] = []
    memory_type: str = ""
    unified_memory: bool = False
    memory_channels: PositiveInt | None = None
    bandwidth_gb_per_s: PositiveFloat | None = None
    fp32_tflops: PositiveFloat | None = None
    fp16_tflops: PositiveFloat | None = None
    fp16_tensor_tflops: PositiveFloat | None = None
    fp16_acc16_tflops: PositiveFloat | None = None
    bf16_tensor_tflops: PositiveFloat | None = None
    fp8_tflops: PositiveFloat | None = None
    fp8_acc16_tflops: PositiveFloat | None = None
    int8_tops: PositiveFloat | None = None
    fp4_tflops: PositiveFloat | None = None
    compute_units: PositiveInt | None = None
    boost_mhz: PositiveFloat | None = None
    cpu_cores: PositiveInt | None = None
    cpu_fast_cores: PositiveInt | None = None
    memory_nodes: PositiveInt = 1
    cpu_isa: list[str] = []
    l2_mib: PositiveFloat | None = None
    l3_mib: PositiveFloat | None = None
    power_w: PositiveFloat | None = None
    pcie: str | None = None
    peer: str | None = None
    peer_gb_per_s_bidirectional: PositiveFloat | None = None
    release_year: int | None = Field(default=None, ge=1990, le=2100)
    price_usd: PositiveFloat | None = None
    cloud_usd_per_hour: PositiveFloat | None = None
    basis: Basis = "datasheet"
    rate_basis: str = ""
    source: str = ""
    source_date: str = ""
    notes: str = ""
    origins: dict[str, str] = {}

    @field_validator("pcie")
    @classmethod
    def _pcie(cls, value: str | None) -> str | None:
        if value is not None:
            link(value)
        return value

    @field_validator("origins")
    @classmethod
    def _origins(cls, value: dict[str, str]) -> dict[str, str]:
        unknown = sorted(set(value) - DEVICE_FIELDS)
        if unknown:
            raise ValueError(f"origins of unknown fields: {', '.join(unknown)}")
        return value

    def to_device(self, vendor: str) -> Device:
        """The entry in base SI units. Both directions of a peer link are halved to one."""
        raw = self.model_dump(exclude={"aliases", "labels", "pci_ids"})
        values: dict[str, object] = {"vendor": vendor}
        for key, value in raw.items():
            if key in SCALED and value is not None:
                field, factor = SCALED[key]
                si = round(value * factor, 3)
                values[field] = int(si) if field in INTEGERS else float(si)
            elif key in DEVICE_FIELDS and key not in ("origins", "pcie", "peer", "cpu_isa"):
                values[key] = value
        values["memory_options_bytes"] = tuple(gib * GIB for gib in self.memory_options_gib)
        values["cpu_isa"] = tuple(self.cpu_isa)
        values["pcie"] = link(self.pcie) if self.pcie else None
        values["peer"] = self._peer()
        origins = dict(self.origins)
        if self.rate_basis:
            origins.setdefault("rates", self.rate_basis)
        values["origins"] = tuple(sorted(origins.items()))
        return Device(**values)  # type: ignore[arg-type]

    def _peer(self) -> Link | None:
        both = self.peer_gb_per_s_bidirectional
        return Link(self.peer or "peer", both * GIGA / 2) if both else None


class SharedName(BaseModel):
    """Names that several devices bear, and which of them is meant, if one is."""

    model_config = ConfigDict(extra="forbid")

    names: list[str] = Field(min_length=1)
    devices: list[str] = Field(min_length=2)
    default: str | None = None
    reason: str = ""


class VendorFile(BaseModel):
    """One file of `hwdb/data`: a vendor and its devices."""

    model_config = ConfigDict(extra="forbid")

    vendor: str
    devices: list[Entry]


class SharedNamesFile(BaseModel):
    """The names that several devices answer to, with the one usually meant."""

    model_config = ConfigDict(extra="forbid")

    shared_names: list[SharedName]


class OwnDevice(Entry):
    """A device in a machine file: a catalogue device with changes (`device`), or one of the user's own."""

    id: str = Field(default="", pattern=r"^([a-z0-9][a-z0-9.-]*)?$")
    name: str = ""
    kind: Kind = "gpu"
    device: str = ""
    vendor: str = ""
    count: int = Field(default=1, ge=1, le=1024)


class MachineFile(BaseModel):
    """A machine file; see `hwdb.machine_file`."""

    model_config = ConfigDict(extra="forbid")

    name: str = ""
    gpus: list[str | OwnDevice] = Field(default=[], max_length=64)
    cpu: str | OwnDevice | None = None
    host_memory_gib: PositiveFloat | None = Field(default=None, le=1 << 20)
    free_gib: list[PositiveFloat] = []
    operating_system: str = ""

    @field_validator("gpus", mode="before")
    @classmethod
    def _numbers_are_names(cls, value: object) -> object:
        """`gpus: [3090]` means the name, and `gpus: 2x3090` is a list of one."""
        items = [value] if isinstance(value, str | int | dict) else value
        return [str(i) if type(i) is int else i for i in items] if isinstance(items, list) else items
