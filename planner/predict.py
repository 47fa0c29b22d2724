"""`plan predict`: a file of measurement rows priced row by row, the file kept as it is and columns
appended."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from estimators.quantity import Quantity
from planner import rows
from planner.asks import Ask, Refusal
from planner.errors import EnvironmentFailed, UsageError

#: Columns appended for each layout, in order. `{}` quantities come from `Priced.quantities`.
COLUMNS: dict[rows.Layout, tuple[str, ...]] = {
    "speed": ("predicted", "low", "high", "bottleneck", "status", "reason"),
    "memory": ("predicted", "low", "high", "bottleneck", "status", "reason"),
    "serving": (
        "predicted_ttft_ms", "predicted_tpot_ms", "low_ttft_ms", "high_ttft_ms", "low_tpot_ms",
        "high_tpot_ms", "bottleneck", "status", "reason",
    ),
    "llamacpp": (
        "predicted_model_bytes", "predicted_kv_bytes", "predicted_compute_bytes", "predicted_file_bytes",
        "status", "reason",
    ),
    "boundary": ("predicted_max_batch", "low_max_batch", "high_max_batch", "status", "reason"),
    "tensors": ("predicted_n_tensors", "predicted_n_elements", "predicted_bytes", "status", "reason"),
}  # fmt: skip


@dataclass(frozen=True)
class Priced:
    """One row's answer: quantities by measured column, or `reason` why there are none."""

    ask: Ask | Refusal
    quantities: dict[str, Quantity]
    bottleneck: str = ""
    reason: str = ""

    @property
    def ok(self) -> bool:
        return not self.reason


@dataclass(frozen=True)
class Summary:
    """What `predict_file` did. `reasons` are those of unpriced rows, most frequent first."""

    layout: rows.Layout
    out: Path
    n_rows: int
    n_priced: int
    seconds: float
    reasons: tuple[tuple[str, int], ...] = ()

    def text(self) -> str:
        """A few lines for a person."""
        share = self.n_priced / self.n_rows if self.n_rows else 0.0
        lines = [
            f"{self.out}: {self.n_priced:,} of {self.n_rows:,} {self.layout} rows predicted ({share:.1%}) "
            f"in {self.seconds:.1f} s"
        ]
        lines += [f"  {count:>6,} unsupported: {reason}" for reason, count in self.reasons[:8]]
        if len(self.reasons) > 8:
            rest = sum(count for _, count in self.reasons[8:])
            lines.append(f"  {rest:>6,} unsupported for {len(self.reasons) - 8} other reasons")
        return "\n".join(lines)


def predict_file(
    path: str | Path, out: str | Path, progress: Callable[[int, int], None] | None = None
) -> Summary:
    """Price every row of `path` and write it with the predictions to `out`, all at once or not at all.

    Rows keep their place and their bytes; a row that cannot be priced has status `unsupported` and a reason.
    `progress(done, all)` is called now and then.

    Raises:
        UsageError: the file is in no known layout, or already has the columns that would be appended.
        EnvironmentFailed: a file cannot be read or written.
    """
    start = time.perf_counter()
    folder = Path(out).absolute().parent
    if Path(out).is_dir() or not folder.is_dir():  # said before minutes of work, not after
        why = "is a folder" if Path(out).is_dir() else f"there is no folder {folder}"
        raise EnvironmentFailed(f"cannot write {out}: {why}", "another --out")
    file = rows.read(path)
    clash = [name for name in COLUMNS[file.layout] if name in file.columns]
    if clash:
        raise UsageError(f"{path} already has the column `{clash[0]}`", "predict the original file")
    priced = price(file, progress)
    _write(Path(out), file, priced)
    reasons = Counter(_kind_of(row.reason) for row in priced if not row.ok)
    return Summary(
        file.layout,
        Path(out),
        len(priced),
        sum(row.ok for row in priced),
        time.perf_counter() - start,
        tuple(reasons.most_common()),
    )


def _kind_of(reason: str) -> str:
    """A reason without its suggestions, so that equal causes count together."""
    return reason.split("; did you mean")[0]


def price(file: rows.File, progress: Callable[[int, int], None] | None = None) -> list[Priced]:
    """The answer of each record, in order. Equal rows (but for what is measured) are priced once."""
    from planner import pricing

    seen: dict[tuple[str, ...], Priced] = {}
    answers = []
    reads = rows.READS[file.layout]
    for i, record in enumerate(file.records):
        key = tuple(record.fields[name] for name in reads)
        answer = seen.get(key)
        if answer is None:
            answer = seen[key] = price_ask(rows.ask(record, file.layout), pricing.price)
        answers.append(answer)
        if progress and i % 256 == 0:
            progress(i, len(file.records))
    return answers


def price_ask(
    ask: Ask | Refusal, pricer: Callable[[Ask], tuple[dict[str, Quantity], str] | Refusal]
) -> Priced:
    """One answer. A broken row is refused in one line; a broken program still raises."""
    if isinstance(ask, Refusal):
        return Priced(ask, {}, reason=ask.reason)
    try:
        answer = pricer(ask)
    except (ValueError, OverflowError, ZeroDivisionError) as error:
        return Priced(ask, {}, reason=str(error).split("\n")[0] or type(error).__name__)
    if isinstance(answer, Refusal):
        return Priced(ask, {}, reason=answer.reason)
    quantities, bottleneck = answer
    bad = [name for name, q in quantities.items() if not (math.isfinite(q.best) and q.best >= 0)]
    if bad:
        return Priced(ask, {}, reason=f"no finite {bad[0]}")
    return Priced(ask, quantities, bottleneck)


def cells(kind: rows.Layout, priced: Priced) -> list[str]:
    """The appended fields of one row."""
    q = priced.quantities
    tail = ["ok", ""] if priced.ok else ["unsupported", priced.reason]
    if kind == "serving":
        if not priced.ok:
            return ["", "", "", "", "", "", "", *tail]
        ttft, tpot = q["ttft_ms"], q["tpot_ms"]
        numbers = (ttft.best, tpot.best, ttft.low, ttft.high, tpot.low, tpot.high)
        return [*map(_number, numbers), priced.bottleneck, *tail]
    if kind == "llamacpp":
        names: tuple[str, ...] = ("model_bytes", "kv_bytes", "compute_bytes", "file_bytes")
        return [*(str(round(q[name].best)) if priced.ok else "" for name in names), *tail]
    if kind == "tensors":
        names = ("n_tensors", "n_elements", "bytes")
        return [*(str(round(q[name].best)) if priced.ok else "" for name in names), *tail]
    if kind == "boundary":
        if not priced.ok:
            return ["", "", "", *tail]
        batch = q["max_batch_measured"]
        return [*(str(round(n)) for n in (batch.best, batch.low, batch.high)), *tail]
    if not priced.ok:
        return ["", "", "", "", *tail]
    one = q["value"]
    return [_number(one.best), _number(one.low), _number(one.high), priced.bottleneck, *tail]


def _number(value: float) -> str:
    return f"{value:.6g}" if math.isfinite(value) else ""


def _quoted(field: str) -> str:
    if any(c in field for c in ',"\n\r'):
        return '"' + field.replace('"', '""') + '"'
    return field


def _write(out: Path, file: rows.File, priced: Sequence[Priced]) -> None:
    """Write beside the target, then move over it, so that a reader never sees half a file."""
    end = file.newline
    lines = [",".join([file.header, *COLUMNS[file.layout]])]
    for record, answer in zip(file.records, priced, strict=True):
        lines.append(",".join([record.text, *map(_quoted, cells(file.layout, answer))]))
    data = end.join(lines) + end
    try:
        handle, name = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write((b"\xef\xbb\xbf" if file.bom else b"") + data.encode("utf-8"))
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(name, 0o666 & ~umask)
            os.replace(name, out)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise EnvironmentFailed(f"cannot write {out}: {error.strerror or error}", "another --out") from None
