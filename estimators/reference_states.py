"""What recurrent layers cost the bundled runner: FLOPs in their states, and numbers that pass through memory."""

from __future__ import annotations

from modeldb.layers import Attention, Convolution, LinearAttention, Mixer, StateSpace
from modeldb.model import Model

# Operations per number of a state and token: decay, what is added (product and sum), the sum that reads it; the delta
# rule also reads it before it writes. `runner.recurrent` counts the same for itself.
SCAN_FLOPS, DELTA_FLOPS = 5, 7


def flops(model: Model) -> float:
    """FLOPs of one token in the states of all layers."""
    return sum(_flops(mixer) for block in model.blocks for mixer in block.mixers)


def _flops(mixer: Mixer) -> float:
    if isinstance(mixer, StateSpace):
        return float(SCAN_FLOPS * mixer.state * mixer.inner)
    if isinstance(mixer, LinearAttention):
        own = SCAN_FLOPS if _scans(mixer) else DELTA_FLOPS
        return float(own * mixer.k_dim * mixer.n_v_heads * mixer.v_dim)
    return 0.0


#: How much longer a FLOP of a prompt takes in states than in attention (Zen 5, 2026).
SCAN_SLOWER, DELTA_SLOWER = 1.1, 1.8


def prompt_flops(model: Model) -> float:
    """FLOPs of one token in the states of all layers, as FLOPs of attention that take as long."""
    mixers = [mixer for block in model.blocks for mixer in block.mixers]
    return sum(_flops(m) * (SCAN_SLOWER if _scans(m) else DELTA_SLOWER) for m in mixers)


def _scans(mixer: Mixer) -> bool:
    """Whether its states are read once for a token; lightning attention's go through the scan of Mamba-2."""
    return isinstance(mixer, StateSpace) or (isinstance(mixer, LinearAttention) and mixer.kind == "lightning")


def floats(model: Model) -> tuple[float, float]:
    """Numbers per token that recurrent (and gated) layers hold beside those of attention: summed over all layers,
    and of the layer that has most, whose buffers serve all."""
    found = [_floats(mixer, model.hidden_size) for block in model.blocks for mixer in block.mixers]
    return sum(found), max(found, default=0.0)


def _floats(mixer: Mixer, hidden: int) -> float:
    """The projection, the convolved channels and the output."""
    match mixer:
        case StateSpace():
            channels = mixer.inner + 2 * mixer.n_groups * mixer.state
            return float(2 * mixer.inner + 2 * channels + 3 * mixer.n_heads)
        case LinearAttention(kind="lightning"):
            return float(3 * mixer.n_v_heads * mixer.v_dim + 2 * mixer.n_k_heads * mixer.k_dim)
        case LinearAttention():
            inner = mixer.n_v_heads * mixer.v_dim
            return float(2 * inner + 2 * (inner + 2 * mixer.n_k_heads * mixer.k_dim) + 6 * mixer.n_v_heads)
        case Convolution():
            return 5.0 * hidden
        case Attention(gate="double_q"):
            return 3.0 * mixer.n_heads * mixer.head_dim
    return 0.0


def widest(model: Model) -> int:
    """The widest input of a recurrent layer's matrices."""
    found = [m for block in model.blocks for m in block.mixers]
    inner = [m.inner if isinstance(m, StateSpace) else m.n_v_heads * m.v_dim for m in found
             if isinstance(m, StateSpace | LinearAttention)]  # fmt: skip
    return max(inner, default=0)
