"""Decode in steps of fixed shape: token and position live on the device, attention runs over a padded bucket of slots.

On CUDA and ROCm each bucket's step is captured once as a graph and replayed; elsewhere the same function is called.
A step feeds itself: the likeliest token and the next position stay on the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runner.torch_cache import bucket
from runner.torch_forward import Held, forward

if TYPE_CHECKING:
    from torch import Tensor

WARM_UPS = 2  # libraries choose kernels and take workspaces in the first runs


class StaticDecode:
    """Buffers and graphs of one model. Use under `torch.inference_mode`."""

    def __init__(self, held: Held, vocab_size: int, device: Any, capture: bool) -> None:
        import torch

        self.held, self.capture = held, capture
        self.token = torch.zeros(1, dtype=torch.int64, device=device)
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        self.logits = torch.zeros(vocab_size, dtype=torch.float32, device=device)
        self.graphs: dict[int, Any] = {}
        self.pool: Any = None

    def put(self, token: int, position: int) -> None:
        """Where the next step starts."""
        self.token.fill_(token)
        self.position.fill_(position)

    def step(self, n_seen: int) -> None:
        """One token over `n_seen` slots: logits, then the likeliest token and the next position in their buffers."""
        logits = forward(self.held, self.token, self.position, n_seen)[-1]
        self.logits.copy_(logits)
        self.token.copy_(logits.argmax(-1, keepdim=True))
        self.position.add_(1)

    def run(self, n_tokens: int) -> Tensor:
        """The step that makes the cache hold `n_tokens`; its logits (a buffer, overwritten by the next step)."""
        n_seen = self.prepare(n_tokens)
        if self.capture:
            self.graphs[n_seen].replay()
        else:
            self.step(n_seen)
        return self.logits

    def prepare(self, n_tokens: int) -> int:
        """Capture the graph that `run(n_tokens)` replays, if none is there; its number of slots. `put` comes first:
        warm-ups write the row of the cache that the next step writes."""
        n_seen = bucket(n_tokens, self.held.cache.n_context)
        if self.capture and n_seen not in self.graphs:
            self.graphs[n_seen] = self._captured(n_seen)
        return n_seen

    def _captured(self, n_seen: int) -> Any:
        """The graph of a step. Warm-ups run the step where it stands and are undone."""
        import torch

        token, position = self.token.clone(), self.position.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                self.token.copy_(token)
                self.position.copy_(position)
                self.step(n_seen)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            self.step(n_seen)
        self.pool = self.pool or graph.pool()
        self.token.copy_(token)
        self.position.copy_(position)
        return graph
