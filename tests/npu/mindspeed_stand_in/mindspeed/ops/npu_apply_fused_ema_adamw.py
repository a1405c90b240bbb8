"""The kernel by its name; what it computes is documented in MindSpeed's docs/ops/npu_apply_fused_ema_adamw.md."""

from ema_runs import kernel as npu_apply_fused_ema_adamw  # noqa: F401
