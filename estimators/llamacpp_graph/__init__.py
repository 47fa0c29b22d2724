"""llama.cpp's compute graph of one micro-batch: where the compute buffer comes from.

The operations of each layer kind, with symbolic sizes; `estimators.ggml_alloc` replays the allocator on them.
Written after reading llama.cpp at commit 0c1e57098 (`src/llama-graph.cpp`, `src/models/*.cpp`). Weights,
caches and host scratch are not here, because llama.cpp keeps them in other buffers.

`style` says how architectures differ, `builder` holds what all parts are written with, `attention`, `recurrent`
and `feed_forward` write one layer kind each, `layer` one layer, `graph` all of it.
"""

from estimators.llamacpp_graph.graph import build

__all__ = ["build"]
