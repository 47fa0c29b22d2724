"""Numbers of GGUF metadata, each held against what it can be."""

from __future__ import annotations

from typing import Any

from modeldb.errors import BrokenFile


class Keys:
    """The keys of one architecture in `metadata`; `name` stands in error messages."""

    def __init__(self, metadata: dict[str, Any], name: str) -> None:
        self.metadata, self.name = metadata, name
        self.architecture = metadata.get("general.architecture", "")

    def get(self, key: str, default: Any = None) -> Any:
        value = self.metadata.get(f"{self.architecture}.{key}", default)
        return default if value is None else value

    def number(self, key: str, default: float | None = None) -> Any:
        """A finite number; of a list, the one that all its entries are. Raises BrokenFile."""
        value = self.get(key, default)
        if isinstance(value, (list, tuple)) and value and all(v == value[0] for v in value):
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise BrokenFile(f"{self.name}: metadata key `{self.architecture}.{key}` is missing or no number")
        if value != value or abs(value) > 1e15:
            raise BrokenFile(f"{self.name}: metadata key `{self.architecture}.{key}` is {value}")
        return value

    def count(self, key: str, default: int | None = None) -> int:
        """A whole number that is not negative. Raises BrokenFile."""
        value = self.number(key, default)
        if value != int(value) or not 0 <= value < 1 << 31:
            raise BrokenFile(f"{self.name}: metadata key `{self.architecture}.{key}` is {value}")
        return int(value)

    def by_layer(self, key: str, n_layers: int, default: Any = None) -> tuple[Any, ...]:
        """A value per layer, where the file has one value or a list of them. Raises BrokenFile."""
        value = self.get(key, default)
        if not isinstance(value, (list, tuple)):
            return (value,) * n_layers
        if len(value) < n_layers:
            raise BrokenFile(
                f"{self.name}: metadata key `{self.architecture}.{key}` has {len(value)} entries for "
                f"{n_layers} layers"
            )
        return tuple(value[:n_layers])

    def limits(self, key: str, n_layers: int) -> tuple[float, ...]:
        """Bounds by layer, 0 where there is none. Raises BrokenFile."""
        found = self.by_layer(key, n_layers, 0.0)
        if any(isinstance(v, bool) or not isinstance(v, (int, float)) or not 0 <= v < 1e15 for v in found):
            raise BrokenFile(f"{self.name}: metadata key `{self.architecture}.{key}` is {found!s:.60}")
        return tuple(float(v) for v in found)
