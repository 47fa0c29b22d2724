"""Machine files: a machine in YAML, with catalogue devices, changed ones, or devices nobody else knows.

    name: two used cards
    gpus:
      - 2x rtx 3090
      - {device: rtx 4060, bandwidth_gb_per_s: 250}          # a catalogue device with the user's numbers
      - {name: My board, kind: gpu, memory_gib: 20, bandwidth_gb_per_s: 640, fp16_tensor_tflops: 80, count: 2}
    cpu: ryzen 9 7950x
    host_memory_gib: 64
    free_gib: [22.5, 22.9, 7.1, 19.5, 19.5]                  # one per device, in order; may be left out
    operating_system: linux

Devices and their keys are those of `hwdb/data/README.md`. Numbers given here have the source "user".
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwdb.catalogue import Catalogue, load
from hwdb.describe import GIB, counted, cpu_cores_of, machine, processor, title
from hwdb.device import Device, Machine
from hwdb.errors import BrokenMachineFile, HardwareError

if TYPE_CHECKING:
    import yaml

MAX_BYTES = 1 << 20
MAX_DEPTH = 8


def read(path: str | Path, catalogue: Catalogue | None = None) -> Machine:
    """The machine that the file describes; BrokenMachineFile, in one line, where it describes none."""
    path = Path(path)
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise BrokenMachineFile(f"{path}: {error.strerror or error}") from None
    if len(raw) > MAX_BYTES:
        raise BrokenMachineFile(f"{path}: larger than {MAX_BYTES >> 20} MiB, not a machine file")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise BrokenMachineFile(f"{path}: not UTF-8 text") from None
    return parse(text, str(path), catalogue)


def parse(text: str, where: str = "machine.yaml", catalogue: Catalogue | None = None) -> Machine:
    """As `read`, from text; `where` names it in errors."""
    node = _compose(text, where)
    content = _plain(node, where)
    checked = _validate(content, node, where)
    try:
        return _machine(checked, catalogue or load())
    except HardwareError as error:
        raise BrokenMachineFile(f"{where}: {error}") from None


def _compose(text: str, where: str) -> yaml.Node:
    """The document as nodes with line numbers; no anchors, no deep nesting, no second document."""
    import yaml

    depth = documents = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise BrokenMachineFile(f"{_at(where, event)}: YAML anchors and aliases are not accepted")
            documents += isinstance(event, yaml.DocumentStartEvent)
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH or documents > 1:
                what = "nested too deeply" if depth > MAX_DEPTH else "more than one document"
                raise BrokenMachineFile(f"{_at(where, event)}: {what}")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise BrokenMachineFile(f"{where}:{line}: not YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise BrokenMachineFile(f"{where}: not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(node, yaml.MappingNode):
        raise BrokenMachineFile(f"{where}:1: not a mapping with `gpus`, `cpu`, `host_memory_gib`")
    return node


def _plain(node: yaml.Node, where: str) -> Any:
    """The node as Python values; a key that occurs twice is refused."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        content: dict[str, Any] = {}
        for key_node, value in node.value:
            name = str(key_node.value)
            if name in content:
                raise BrokenMachineFile(f"{_at(where, key_node)}: `{name}` occurs twice")
            content[name] = _plain(value, where)
        return content
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, where) for item in node.value]
    try:
        return yaml.SafeLoader("").construct_object(node)
    except (yaml.YAMLError, ValueError, OverflowError):
        raise BrokenMachineFile(f"{_at(where, node)}: `{node.value}` is not a value of that type") from None


def _validate(content: dict[str, Any], node: yaml.Node, where: str) -> Any:
    from pydantic import ValidationError

    from hwdb.schema import MachineFile

    try:
        return MachineFile.model_validate(content)
    except ValidationError as error:
        first = max(error.errors(), key=lambda found: len(found["loc"]))  # the branch that got furthest
        found, path = _locate(node, [part for part in first["loc"] if part in _keys(content)])
        name = ".".join(str(part) for part in path) or "machine"
        what = "unknown key" if first["type"] == "extra_forbidden" else first["msg"]
        raise BrokenMachineFile(f"{_at(where, found)}: {name}: {what}") from None


def _keys(content: Any) -> set[Any]:
    """Every key and index in the document: what an error's path may hold besides type names."""
    if isinstance(content, dict):
        return set(content).union(*(_keys(value) for value in content.values()))
    if isinstance(content, list):
        return set(range(len(content))).union(*(_keys(value) for value in content))
    return set()


def _locate(node: yaml.Node, path: list[Any]) -> tuple[yaml.Node, list[Any]]:
    """The node that `path` leads to, as far as it leads."""
    import yaml

    walked: list[Any] = []
    for part in path:
        if isinstance(node, yaml.MappingNode):
            found = next((value for key, value in node.value if key.value == part), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            found = node.value[part]
        else:
            found = None
        if found is None:
            break
        node, walked = found, [*walked, part]
    return node, walked


def _machine(file: Any, known: Catalogue) -> Machine:
    host_bytes = int(file.host_memory_gib * GIB) if file.host_memory_gib else None
    devices: list[Device] = []
    for item in file.gpus:
        devices += _devices(item, host_bytes, known)
    unified = next((device for device in devices if device.unified_memory), None)
    if unified and host_bytes is None:
        host_bytes = unified.memory_bytes
    host = _host(file.cpu, host_bytes, known)
    if unified and file.cpu is None:
        host = cpu_cores_of(unified, known) or host
    if not devices:
        if host is None and host_bytes is None:
            raise HardwareError("no machine described: give `gpus`, `cpu` or `host_memory_gib`")
        host = host or machine(host_memory_bytes=host_bytes, catalogue=known).host
    free = tuple(int(gib * GIB) for gib in file.free_gib)
    if free and len(free) != len(devices):
        raise HardwareError(f"free_gib has {len(free)} numbers for {len(devices)} devices")
    return Machine(
        name=file.name or title(devices, host),
        devices=tuple(devices),
        host=host and replace(host, memory_bytes=host_bytes),
        host_memory_bytes=host_bytes,
        free_bytes=free,
        operating_system=file.operating_system,
        origin="described",
    )


def _devices(item: Any, host_bytes: int | None, known: Catalogue) -> list[Device]:
    if isinstance(item, str):
        return list(machine(item, host_memory_bytes=host_bytes, catalogue=known).devices)
    if item.device:
        count, name = counted(item.device)
        memory = int(item.memory_gib * GIB) if item.memory_gib else None
        base = machine(name, memory_bytes=memory, host_memory_bytes=host_bytes, catalogue=known).devices[0]
        return [_changed(base, item)] * (count * item.count)
    device = _own(item)
    if device.kind == "cpu":
        raise HardwareError(f"`{device.name}` is a processor: give it as `cpu`")
    if device.memory_bytes is None:
        if not (device.unified_memory and host_bytes):
            raise HardwareError(f"`{device.name}` needs memory_gib")
        device = replace(device, memory_bytes=host_bytes)
    return [device] * item.count


def _host(item: Any, host_bytes: int | None, known: Catalogue) -> Device | None:
    if item is None:
        return None if host_bytes is None else machine(host_memory_bytes=host_bytes, catalogue=known).host
    if isinstance(item, str):
        return processor(item, known)
    return _changed(processor(item.device, known), item) if item.device else _own(item, kind="cpu")


def _changed(base: Device, item: Any) -> Device:
    """A catalogue device with the user's numbers on top."""
    own = _own(item, name=base.name, kind=base.kind)
    given = _given(item)
    values = {name: getattr(own, name) for name in given}
    kept = tuple(origin for origin in base.origins if origin[0] not in given)
    return replace(base, **values, origins=(*kept, *((name, "user") for name in sorted(given))))


def _own(item: Any, name: str = "", kind: str = "gpu") -> Device:
    """The device that the user's entry describes by itself."""
    from hwdb.schema import Entry

    told = item.model_dump(exclude={"device", "count", "vendor"}, exclude_unset=True)
    told.setdefault("name", name)
    if not told["name"]:
        raise HardwareError("a device needs `device` (a catalogue name) or `name`")
    told.setdefault("kind", kind)
    told["id"] = told.get("id") or re.sub(r"[^a-z0-9]+", "-", told["name"].lower()).strip("-") or "device"
    entry = Entry.model_validate({**told, "source": told.get("source") or "user"})
    return entry.to_device(item.vendor)


def _given(item: Any) -> set[str]:
    """The Device fields that the user's entry sets."""
    from hwdb.schema import SCALED

    renamed = {"memory_options_gib": "memory_options_bytes", "peer_gb_per_s_bidirectional": "peer"}
    skipped = {
        "device",
        "count",
        "vendor",
        "origins",
        "source",
        "rate_basis",
        "aliases",
        "labels",
        "pci_ids",
        "id",
    }
    return {SCALED[k][0] if k in SCALED else renamed.get(k, k) for k in item.model_fields_set - skipped}


def _at(where: str, marked: Any) -> str:
    return f"{where}:{marked.start_mark.line + 1}"
