"""YAML with the line and column of every key, and without the traps: cycles, bombs, absurd sizes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner.errors import EnvironmentFailed, UsageError

MAX_BYTES = 1 << 20
MAX_NODES = 20_000
MAX_DEPTH = 40

Path_ = tuple[str | int, ...]


@dataclass(frozen=True)
class Lines:
    """Where each key or item stands: path -> (line, column), 1-based."""

    marks: dict[Path_, tuple[int, int]]

    def at(self, *paths: Path_) -> tuple[int, int]:
        """The place of the first of `paths` that exists, else the start of the file."""
        for path in paths:
            if path in self.marks:
                return self.marks[path]
        return (1, 1)


def _walk(node: Any, path: Path_, marks: dict[Path_, tuple[int, int]], file: str) -> None:
    import yaml

    if len(marks) > MAX_NODES or len(path) > MAX_DEPTH:
        line, column = node.start_mark.line + 1, node.start_mark.column + 1
        raise UsageError(f"{file}:{line}:{column}: too deep, too large or cyclic", "write it without anchors")
    marks.setdefault(path, (node.start_mark.line + 1, node.start_mark.column + 1))
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else ""
            if (*path, name) in marks:
                mark = key.start_mark
                raise UsageError(
                    f"{file}:{mark.line + 1}:{mark.column + 1}: `{name}` is given twice", "keep one"
                )
            marks[(*path, name)] = (key.start_mark.line + 1, key.start_mark.column + 1)
            _walk(value, (*path, name), marks, file)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _walk(value, (*path, index), marks, file)


def load(path: Path) -> tuple[Any, Lines]:
    """The data of a YAML file and its Lines. UsageError with file, line and column when it is broken."""
    import yaml

    try:
        with path.open("rb") as stream:
            text = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise EnvironmentFailed(f"cannot read `{path}`: {error.strerror}", "check the path") from None
    if len(text) > MAX_BYTES:
        raise UsageError(f"{path}:1:1: larger than {MAX_BYTES} bytes", "split it")
    marks: dict[Path_, tuple[int, int]] = {}
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None:
            _walk(node, (), marks, str(path))
        return yaml.safe_load(text), Lines(marks)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{mark.line + 1}:{mark.column + 1}" if mark else "1:1"
        raise UsageError(f"{path}:{place}: {error.problem or 'not YAML'}", "mend the YAML") from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"{path}:1:1: not YAML: {reason}", "mend the YAML") from None
