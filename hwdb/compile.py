"""Compiles `hwdb/data/*.yaml` into `hwdb/data/catalogue.json`, which the hot path loads.

    python -m hwdb.compile

Names are checked on the way: one key, one device.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from hwdb.device import Device, Link
from hwdb.errors import HardwareError
from hwdb.names import key

DATA = Path(__file__).parent / "data"
COMPILED = DATA / "catalogue.json"


def compile_text(folder: Path = DATA) -> str:
    """The JSON text of the catalogue in `folder`; the same YAML gives the same bytes."""
    import yaml

    from hwdb.schema import Entry, SharedNamesFile, VendorFile

    entries: list[tuple[str, Entry]] = []
    for path in sorted(folder.glob("*.yaml")):
        if path.name != "shared_names.yaml":
            file = VendorFile.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
            entries += [(file.vendor, entry) for entry in file.devices]
    shared_text = (folder / "shared_names.yaml").read_text(encoding="utf-8")
    shared = SharedNamesFile.model_validate(yaml.safe_load(shared_text)).shared_names

    ids = [entry.id for _, entry in entries]
    keys, labels, pci = Owners("name"), Owners("label"), Owners("PCI id")
    for _, entry in entries:
        for name in (entry.id, entry.name, *entry.aliases):
            keys.claim(key(name), entry.id)
        for label in entry.labels:
            labels.claim(label, entry.id)
        for pci_id in entry.pci_ids:
            pci.claim(pci_id, entry.id)
    groups: dict[str, dict[str, Any]] = {}
    for group in shared:
        unknown = sorted({*group.devices, *filter(None, [group.default])} - set(ids))
        if unknown:
            raise HardwareError(f"shared name `{group.names[0]}` lists unknown devices: {', '.join(unknown)}")
        for name in group.names:
            owner = keys.owner.get(key(name))
            if owner not in (None, group.default) or key(name) in groups:
                raise HardwareError(f"shared name `{name}` is already a name of `{owner}`")
            groups[key(name)] = {"name": name, "devices": group.devices, "default": group.default}
    if len(set(ids)) != len(ids):
        raise HardwareError(f"device ids occur twice: {sorted({i for i in ids if ids.count(i) > 1})}")

    rows = [_row(entry.to_device(vendor)) | {"aliases": entry.aliases} for vendor, entry in entries]
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    tables = {"keys": keys.owner, "labels": labels.owner, "pci": pci.owner, "shared": groups}
    rest = ",\n".join(f"{json.dumps(name)}: {json.dumps(table)}" for name, table in tables.items())
    return f'{{"schema_version": 1,\n"devices": [\n{lines}\n],\n{rest}}}\n'


class Owners:
    """Which device owns a name; a second claimant is an error."""

    def __init__(self, what: str) -> None:
        self.what, self.owner = what, dict[str, str]()

    def claim(self, name: str, device_id: str) -> None:
        if not name or self.owner.setdefault(name, device_id) != device_id:
            raise HardwareError(
                f"{self.what} `{name}` belongs to `{self.owner.get(name)}`, not `{device_id}`"
            )


def _row(device: Device) -> dict[str, Any]:
    """The fields of `device` that differ from their defaults, as JSON values."""
    row: dict[str, Any] = {}
    for f in fields(device):
        value = getattr(device, f.name)
        if f.default is not MISSING and value == f.default:
            continue
        row[f.name] = [value.name, value.bytes_per_s] if isinstance(value, Link) else value
    return row


if __name__ == "__main__":
    COMPILED.write_text(compile_text(), encoding="utf-8")
