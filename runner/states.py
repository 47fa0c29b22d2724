"""Sizes of layers that keep a state, and what bounds its decay, read from GGUF metadata."""

from __future__ import annotations

from dataclasses import dataclass

from modeldb.errors import BrokenFile, UnsupportedModel
from runner.keys import Keys
from runner.styles import Style


@dataclass(frozen=True, slots=True)
class Recurrent:
    """Sizes of a recurrent layer: `taps` of its convolution over `channels`, and `n_heads` states of `head_rows` rows
    of `state` numbers, in `n_groups` that share inputs. A short convolution has no states."""

    taps: int
    channels: int
    n_heads: int = 0
    head_rows: int = 0
    state: int = 0
    n_groups: int = 1
    step_rank: int = 0  # of Mamba's step sizes; its heads are channels
    normed: bool = False  # Mamba's steps, B and C, without weights

    @property
    def inner(self) -> int:
        return self.n_heads * self.head_rows

    @property
    def tail_numbers(self) -> int:
        return (self.taps - 1) * self.channels

    @property
    def state_numbers(self) -> int:
        return self.inner * self.state


def sizes(keys: Keys, style: Style, hidden: int) -> Recurrent | None:
    """None where no layer recurs. Raises BrokenFile, or UnsupportedModel for states that kernels cannot take."""
    if not style.recurrent or (style.scaled == "all" and keys.get("ssm.inner_size") is None):
        return None  # Granite 4 names its models of attention alone like its hybrids
    if style.recurrent == "lightning":
        return _blocked(_lightning(keys, hidden), keys)
    taps = keys.count("shortconv.l_cache" if style.recurrent == "short_conv" else "ssm.conv_kernel")
    if style.recurrent == "short_conv":
        found = Recurrent(taps, hidden)
    elif style.recurrent == "kda":
        heads, dim = keys.count("attention.head_count"), keys.count("kda.head_dim")
        found = Recurrent(taps, 3 * heads * dim, heads, dim, dim, heads)
    else:
        found = _state_space(keys, style, taps)
    if not 2 <= found.taps <= 64:
        raise BrokenFile(f"{keys.name}: a convolution of {found.taps} taps")
    return _blocked(found, keys)


def _blocked(found: Recurrent, keys: Keys) -> Recurrent:
    """As it is, if kernels can take its states. Raises UnsupportedModel."""
    rows, numbers = (1, 16) if found.step_rank else (4, 32)
    if found.state % numbers or found.head_rows % rows:
        raise UnsupportedModel(
            f"{keys.name}: states of {found.head_rows} x {found.state} are not supported by the runner "
            f"(multiples of {rows} x {numbers})"
        )
    return found


def decay_bound(keys: Keys, style: Style) -> float:
    """The bound of Kimi's decays. Raises BrokenFile, or UnsupportedModel where there is none though gates are full."""
    bound = float(keys.number("kda.gate_lower_bound", 0.0)) if style.recurrent == "kda" else 0.0
    if bound > 0 or (style.full_gates and not bound):
        raise BrokenFile(f"{keys.name}: metadata key `{keys.architecture}.kda.gate_lower_bound` is {bound}")
    if style.full_gates and not keys.get("kda.safe_gate", True):
        raise UnsupportedModel(f"{keys.name}: decays without a bound are not supported by the runner")
    return bound


def _lightning(keys: Keys, hidden: int) -> Recurrent:
    """Lightning attention's sizes, which are those of the model's attention; it has no convolution. Raises
    BrokenFile."""
    heads = keys.count("attention.head_count")
    dim = keys.count("attention.key_length", hidden // heads if heads else 0)
    if not heads or not dim or keys.count("attention.value_length", dim) != dim:
        raise BrokenFile(f"{keys.name}: a state of {heads} heads with keys of {dim} and other values is none")
    return Recurrent(1, 0, heads, dim, dim, heads)


def _state_space(keys: Keys, style: Style, taps: int) -> Recurrent:
    """Mamba's and Mamba-2's sizes, and those of the gated delta rule, whose key heads are groups. Raises BrokenFile."""
    inner, state = keys.count("ssm.inner_size"), keys.count("ssm.state_size")
    rank = keys.count("ssm.time_step_rank")
    if style.recurrent == "mamba":
        if not inner or not state or not rank:
            raise BrokenFile(f"{keys.name}: a state of {state} x {inner} with steps of rank {rank} is none")
        return Recurrent(taps, inner, inner, 1, state, 1, rank, bool(keys.get("ssm.dt_b_c_rms")))
    groups = keys.count("ssm.group_count")
    if not rank or not groups or not state or inner % rank or rank % groups or inner % groups:
        raise BrokenFile(
            f"{keys.name}: a state of {state} x {inner} in {rank} heads and {groups} groups is none"
        )
    return Recurrent(taps, inner + 2 * groups * state, rank, inner // rank, state, groups)
