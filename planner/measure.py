"""`plan measure`: what this machine's processor reaches, kept so that `plan` uses it instead of a datasheet."""

from __future__ import annotations

import datetime
import importlib.util
import sys
from dataclasses import asdict, dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from planner import units
from planner.errors import EnvironmentFailed

if TYPE_CHECKING:
    from pathlib import Path

    from hwdb.device import Device, KernelRates, Machine
    from hwdb.user_devices import Measurement
    from runner.bandwidth import AttentionRate, Bandwidth, MatmulRate
    from runner.meter import Conditions

WIDTHS = (1024, 4096)
FORMATS = ("F16", "BF16", "Q8_0", "Q5_0", "Q4_0", "Q6_K", "Q5_K", "Q4_K", "MXFP4")
GROUPS = (1, 4)  # query heads per key head
TOKENS = 512
READ_BYTES = 1 << 29  # far above any cache


@dataclass(frozen=True)
class Survey:
    """What was measured. Rates per second, times in seconds."""

    reads: tuple[Bandwidth, ...]
    products: tuple[MatmulRate, ...]
    blas_flops: tuple[tuple[int, float], ...]  # (width, FLOP/s)
    step_s: float
    operation_s: float
    conditions: Conditions
    streams: tuple[tuple[str, float], ...] = ()  # (format, bytes/s of a decode step's product)
    attention: tuple[AttentionRate, ...] = ()  # by GROUPS
    layer_s: float = 0.0

    @property
    def best_read(self) -> Bandwidth:
        return max(self.reads, key=lambda r: r.median_bytes_per_s)

    @property
    def fp32_flops(self) -> float:
        """The best rate in float32: of BLAS or of the runner's kernels over 16-bit weights."""
        own = [p.median_flops for p in self.products if p.format == "F16"]
        return max([*own, *(rate for _, rate in self.blas_flops)])

    @property
    def int8_ops(self) -> float:
        """The best rate over 8-bit integers."""
        return max(p.median_flops for p in self.products if p.format != "F16")

    @property
    def kernels(self) -> KernelRates | None:
        """As hwdb keeps them; None where not all were measured."""
        from hwdb.device import KernelRates

        products = {p.format: p.median_flops for p in self.products}
        formats = tuple((f, rate, products[f]) for f, rate in self.streams if f in products)
        if not formats or len(self.attention) < len(GROUPS) or not self.layer_s:
            return None
        one, four = (a.bytes_per_s for a in self.attention)
        return KernelRates(formats, (one, four), self.attention[-1].flops, self.layer_s)

    def document(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "bandwidth_bytes_per_s": self.best_read.median_bytes_per_s,
            "fp32_flops": self.fp32_flops,
            "int8_ops": self.int8_ops,
            "remarks": list(self.conditions.remarks()),
        }


def need_runner() -> None:
    """Raises EnvironmentFailed when the runner's packages are missing."""
    if importlib.util.find_spec("numba") is None:
        raise EnvironmentFailed(
            "the runner needs Numba, which is not installed", 'pip install "llm-plan[run]"'
        )


@cache
def tell_of_compiling() -> None:
    """Say on stderr, once, that kernels are about to compile."""
    from runner.target import is_compiled

    if not is_compiled():
        print("note: compiling the runner's kernels, once: this takes up to a minute", file=sys.stderr)


def survey(n_threads: int = 0, quick: bool = False, formats: tuple[str, ...] = ()) -> Survey:
    """Measure this processor with up to `n_threads` threads (0: its physical cores). `quick` (about 2 s) takes only
    the rates that predictions for weights in `formats` need."""
    need_runner()
    tell_of_compiling()
    from runner import bandwidth
    from runner.engine import physical_cores
    from runner.meter import Watch

    most, formats = n_threads or physical_cores(), formats or FORMATS
    watch = Watch()
    counts = sorted({1, 2, *range(4, most, max(2, most // 8))} & set(range(1, most)))
    fewer = () if quick else tuple(bandwidth.read_bandwidth(n, READ_BYTES, 9) for n in counts)
    n_bytes, n_reads, n_products = (READ_BYTES // 2, 9, 3) if quick else (READ_BYTES, 13, 5)
    read, streams = bandwidth.stream_rates(most, formats, n_bytes, n_reads)
    # int8 and float32 rates are kept for other engines, so one format of each is always timed
    timed = tuple(dict.fromkeys((*formats, "F16", "Q8_0")))
    products = tuple(
        bandwidth.matmul_rate(f, w, TOKENS, most, n_products)
        for w in WIDTHS[quick and len(WIDTHS) > 1 :]
        for f in (timed if w == WIDTHS[-1] else ("F16", "Q8_0"))
    )
    blas = () if quick else tuple((w, bandwidth.blas_rate(w, TOKENS)) for w in WIDTHS)
    step, operation = bandwidth.operation_overhead_s(most)
    attention = tuple(bandwidth.attention_rate(most, g, repeats=n_products) for g in GROUPS)
    layer = bandwidth.layer_s(most)
    conditions = watch.conditions()
    return Survey(
        (*fewer, read), products, blas, step, operation, conditions, tuple(streams.items()), attention, layer
    )


def measurement(found: Survey, host: Device) -> Measurement:
    """The survey as hwdb keeps it."""
    from hwdb.user_devices import Measurement

    curve = ", ".join(f"{r.n_threads}: {r.median_bytes_per_s / 1e9:.1f}" for r in found.reads)
    best = max(found.products, key=lambda p: p.median_flops)
    remarks = found.conditions.remarks()
    return Measurement(
        name=host.name,
        kind="cpu",
        date=datetime.date.today().isoformat(),
        method=f"plan measure: streaming read in GB/s by threads ({curve}); {best.format} x {best.n_tokens} tokens of "
        f"width {best.width}" + (f"; contaminated: {'; '.join(remarks)}" if remarks else ""),
        cpu_cores=host.cpu_cores,
        bandwidth_bytes_per_s=found.best_read.median_bytes_per_s,
        fp32_flops=found.fp32_flops,
        int8_ops=found.int8_ops,
        kernels=found.kernels,
        thread_bandwidths=tuple((r.n_threads, r.median_bytes_per_s) for r in found.reads),
    )


def this_machine() -> Machine:
    """The machine this runs on, as detected. Raises EnvironmentFailed when its processor could not be read."""
    from hwdb.detect import detect

    machine = detect()
    if machine.host is None:
        raise EnvironmentFailed("this machine's processor could not be read", "plan hw --detect")
    return machine


def keep(found: Survey) -> Path:
    """Write the survey to the user's configuration folder; `plan` uses it from then on."""
    from hwdb import user_devices

    host = this_machine().host
    assert host is not None
    return user_devices.write(measurement(found, host))


def forget() -> bool:
    """Remove what was measured of this processor; False when there was nothing."""
    from hwdb import user_devices
    from hwdb.user_devices import Measurement

    host = this_machine().host
    assert host is not None
    return user_devices.remove(Measurement(host.name, "cpu", "", "", host.cpu_cores))


def with_survey(machine: Machine, found: Survey) -> Machine:
    """`machine` as if this survey had been kept."""
    from dataclasses import replace

    from hwdb import user_devices

    assert machine.host is not None
    return replace(machine, host=user_devices.apply(machine.host, (measurement(found, machine.host),)))


def text(found: Survey, name: str) -> str:
    """The survey as a table of a few lines."""
    rate = lambda value: f"{value / 1e9:8.1f} GB/s"  # noqa: E731
    lines = [name]
    for r in found.reads:
        read = f"read, {units.counted(r.n_threads, 'thread')}"
        lines.append(f"  {read:22s}{rate(r.median_bytes_per_s)}  (best {r.best_bytes_per_s / 1e9:.1f})")
    for width, flops in found.blas_flops:
        lines.append(f"  float32 BLAS, {width:5d}   {flops / 1e9:8.0f} GFLOP/s")
    for p in found.products:
        lines.append(f"  runner {p.format:5s}, {p.width:6d}   {p.median_flops / 1e9:8.0f} GFLOP/s")
    for name, flow in found.streams:
        lines.append(f"  decode {name:5s}          {rate(flow)}")
    for a in found.attention:
        lines.append(
            f"  attention, {a.group} per key  {rate(a.bytes_per_s)}, prompts {a.flops / 1e9:.0f} GFLOP/s"
        )
    lines.append(
        f"  a step {units.format_seconds(found.step_s)}, an operation {found.operation_s * 1e6:.1f} us, "
        f"a layer {found.layer_s * 1e6:.0f} us"
    )
    return "\n".join(lines) + "\n"
