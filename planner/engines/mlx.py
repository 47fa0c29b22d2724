"""MLX: `mlx_lm.server` on Apple silicon. It binds to 127.0.0.1:8080."""

from __future__ import annotations

from estimators.deployment import Deployment
from planner.engines.command import Command, Flag
from planner.engines.reference import plain, safetensors, stem

NAME, TITLE = "mlx", "MLX (mlx_lm.server)"
CONTAINERS = ("mlx", "safetensors")
BACKENDS = ("metal",)


def refuses(deployment: Deployment) -> str:
    """Why MLX cannot run this, or ""."""
    if deployment.backend not in BACKENDS:
        return "MLX runs on Apple silicon"
    if deployment.scheme.container not in CONTAINERS:
        return f"MLX reads its own format, not {deployment.scheme.container}"
    if deployment.scheme.container == "safetensors" and deployment.scheme.family not in ("bf16", "f16"):
        return f"MLX has no {deployment.scheme.id} kernels"
    if deployment.placement.n_gpu_layers is not None or deployment.placement.n_cpu_expert_layers:
        return "MLX keeps everything in unified memory"
    if deployment.settings.kv_type_k not in ("f16", "bf16"):
        return "mlx_lm.server keeps a 16-bit cache"
    return ""


def command(deployment: Deployment) -> Command:
    """The mlx_lm.server line; quantized weights are made once with mlx_lm.convert."""
    model, scheme = deployment.model, deployment.scheme
    if scheme.container == "safetensors":
        found = safetensors(deployment)
        return Command(
            NAME, ("mlx_lm.server",), (Flag("--model", found.repository or found.path, "the weights"),)
        )
    bits, group = scheme.id.removeprefix("mlx-").split("bit")[0], scheme.id.rsplit("-g", 1)[-1]
    folder = f"{stem(model)}-{bits}bit"
    prepare: tuple[tuple[str, ...], ...] = ()
    if bits.isdigit() and group.isdigit():
        prepare = (
            (
                "mlx_lm.convert",
                "--hf-path",
                plain(model),
                "-q",
                "--q-bits",
                bits,
                "--q-group-size",
                group,
                "--mlx-path",
                folder,
            ),
        )
    note = (
        "mlx_lm.server has no context flag: the cache grows with the conversation, priced at its full length"
    )
    return Command(
        NAME, ("mlx_lm.server",), (Flag("--model", folder, "the weights"),), prepare=prepare, notes=(note,)
    )
