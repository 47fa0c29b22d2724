"""The spec of `plan check`: its fields, its reader, and where in the file each of them stands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema

from estimators.deployment import Deployment
from planner import units
from planner.check import Finding, Verdict
from planner.errors import PlanError, UsageError
from planner.yaml_lines import Lines, load


def _quantity(parse: Any, example: str) -> Any:
    """A field that accepts a number in base units or a text with a unit."""
    schema = {"anyOf": [{"type": "number", "minimum": 0}, {"type": "string"}], "examples": [example]}

    def read(value: object) -> object:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError(f"expected a quantity such as {example}")
        try:
            return parse(str(value))
        except PlanError as error:
            raise ValueError(error.message) from error

    return BeforeValidator(read), WithJsonSchema(schema)


Bytes = Annotated[int, *_quantity(units.parse_bytes, "8G")]
Tokens = Annotated[int, *_quantity(units.parse_tokens, "16k")]
Seconds = Annotated[float, *_quantity(units.parse_seconds, "500ms")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MachineSpec(_Strict):
    """The hardware: a file, named GPUs, or a CPU with its memory."""

    file: str | None = Field(None, description="a machine.yaml beside this spec")
    gpu: str | list[str] | None = Field(None, description="device names, e.g. rtx 4060 or 2x3090")
    vram: Bytes | None = Field(None, description="which memory option of the device")
    cpu: str | None = Field(None, description="the host's CPU")
    ram: Bytes | None = Field(None, description="the host's memory, e.g. 64G")


class SettingsSpec(_Strict):
    """Engine settings; what is absent is the engine's default."""

    context: Tokens = Field(4096, description="tokens per user")
    kv: str | None = Field(None, description="cache type of keys and values, e.g. q8_0")
    kv_k: str | None = Field(None, description="cache type of keys")
    kv_v: str | None = Field(None, description="cache type of values")
    gpu_layers: int | None = Field(None, ge=0, description="layers on the GPU; absent: all")
    cpu_experts: int | Literal["all"] = Field(0, description="MoE layers whose experts stay in RAM")
    tensor_parallel: int = Field(1, ge=1, le=1024)
    pipeline_parallel: int | None = Field(None, ge=1, le=1024)
    expert_parallel: int = Field(1, ge=1, le=1024)
    data_parallel: int = Field(1, ge=1, le=1024)
    micro_batch: Tokens | None = None
    threads: int | None = Field(None, ge=1, le=4096)
    flash_attention: bool = True
    memory_fraction: float | None = Field(None, gt=0, le=1)
    eager: bool = False


class WorkloadSpec(_Strict):
    """What is asked of it."""

    prompt: Tokens = 512
    output: Tokens = 256
    users: int = Field(1, ge=1, le=100_000)


class Require(_Strict):
    """What must hold. Times and rates are judged at the pessimistic end of the interval at `confidence`."""

    fits: bool = Field(True, description="every device holds its share")
    headroom_bytes: Bytes | None = Field(
        None, alias="headroom", description="memory that must stay free per device"
    )
    min_context_tokens: Tokens | None = Field(None, alias="min_context")
    max_ttft_s: Seconds | None = Field(None, alias="max_ttft")
    max_tpot_s: Seconds | None = Field(None, alias="max_tpot")
    min_tokens_per_s: float | None = Field(None, alias="min_tps", gt=0, description="per user")
    min_total_tokens_per_s: float | None = Field(
        None, alias="min_throughput", gt=0, description="over all users"
    )
    licenses: list[str] | None = Field(None, description="licences that may be used, e.g. apache-2.0")
    min_quality: float | None = Field(None, description="floor of the quality score for `task`")
    confidence: float = Field(
        0.9, ge=0, lt=1, description="of the interval; 0 judges the best estimate alone"
    )


class Item(_Strict):
    """One deployment and what it promises."""

    name: str
    model: str | None = Field(None, description="a catalogue name")
    path: str | None = Field(None, description="a GGUF, a config.json or a folder, relative to this spec")
    quant: str | None = Field(None, description="e.g. Q4_K_M, awq-4bit-g128, fp8; a file brings its own")
    engine: str | None = None
    task: str = "chat"
    machine: MachineSpec | None = None
    settings: SettingsSpec = SettingsSpec()
    workload: WorkloadSpec = WorkloadSpec()
    require: Require = Require()


class Document(_Strict):
    """A spec for `plan check`."""

    version: Literal[1] = 1
    machine: MachineSpec | None = Field(None, description="for deployments that name none")
    require: Require | None = Field(None, description="for deployments that state none")
    deployments: list[Item] = Field(min_length=1)


@dataclass(frozen=True)
class DeploymentSpec:
    """One item with what it inherits, and where it stands in its file."""

    item: Item
    machine_spec: MachineSpec
    require: Require
    folder: Path
    file: str
    lines: Lines
    index: int

    @property
    def task(self) -> str:
        return self.item.task

    def finding(self, requirement: str, verdict: Verdict, message: str, **numbers: float | None) -> Finding:
        """A Finding at the line that states the requirement, else at the deployment's."""
        here: tuple[str | int, ...] = ("deployments", self.index)
        line, column = self.lines.at((*here, "require", requirement), ("require", requirement), here)
        return Finding(self.item.name, requirement, verdict, message, line, column, **numbers)

    def deployment(self) -> Deployment:
        """The Deployment that this item describes; PlanError or a ModelError names what is unknown."""
        from planner.spec_build import build

        return build(self)


@dataclass(frozen=True)
class Spec:
    """A whole file."""

    file: str
    deployments: tuple[DeploymentSpec, ...]


class SpecError(UsageError):
    """A spec that cannot be read: `file:line:column: what`."""


def _explain(error: ValidationError, file: str, lines: Lines) -> SpecError:
    found = error.errors(include_url=False)
    # a typo explains what is missing
    first = next((e for e in found if e["type"] == "extra_forbidden"), found[0])
    path = tuple(part for part in first["loc"] if not str(part).startswith("function-"))
    line, column = lines.at(*(path[:n] for n in range(len(path), -1, -1)))
    what = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        what = f"unknown key `{path[-1]}`"
    elif path:
        what = f"`{'.'.join(str(part) for part in path)}`: {what[:1].lower()}{what[1:]}"
    return SpecError(f"{file}:{line}:{column}: {what}", "the fields are listed by `plan check --schema`")


def read(path: Path) -> Spec:
    """Read and validate a spec. Errors name the file, the line and the column."""
    data, lines = load(path)
    if not isinstance(data, dict):
        raise SpecError(f"{path}:1:1: a spec is a mapping with `deployments`", "see examples/")
    try:
        document = Document.model_validate(data)
    except ValidationError as error:
        raise _explain(error, str(path), lines) from None
    items = []
    for index, item in enumerate(document.deployments):
        line, column = lines.at(("deployments", index))
        if (item.model is None) == (item.path is None):
            raise SpecError(
                f"{path}:{line}:{column}: `{item.name}` wants either `model` or `path`", "see examples/"
            )
        machine = item.machine or document.machine
        if machine is None:
            raise SpecError(
                f"{path}:{line}:{column}: `{item.name}` names no machine", "add `machine: {gpu: ...}`"
            )
        stated = "require" in data["deployments"][index]
        require = item.require if stated or document.require is None else document.require
        items.append(DeploymentSpec(item, machine, require, path.parent, str(path), lines, index))
    return Spec(str(path), tuple(items))


def schema() -> dict[str, Any]:
    """The JSON Schema of a spec."""
    return Document.model_json_schema(by_alias=True)
