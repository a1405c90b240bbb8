"""AdamW, its learning rate, clipping and averages: flags of every program that trains."""

import dataclasses

from mindspeed_mm.schema import flag, switches

# Schedules of megatron-core's OptimizerParamScheduler, which refuses others.
LR_DECAY_STYLES = ("constant", "linear", "cosine", "inverse-square-root")
# Names in the published scripts, all for AdamW -> True if it keeps an EMA of the weights.
OPTIMIZERS = {"fused_ema_adamw": True, "fused_torch_adamw": False, "fused_adamw": False}
_FP32_MOST = 1e38
# Numbers that an update with --optimizer-cpu-offload brings to the device at once; at least a shard.
UPDATE_PART = 2**24


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerSettings:
    """AdamW (1711.05101) on fp32 main weights, its learning rate, clipping and EMA."""

    lr: float = flag(1e-5, "--lr", above=0, at_most=1e3, help="learning rate of AdamW")
    min_lr: float = flag(0.0, "--min-lr", at_least=0, help="learning rate at the end of the decay")
    lr_decay_style: str = flag(
        "constant", "--lr-decay-style", choices=LR_DECAY_STYLES, help="shape of the decay after the warm-up"
    )
    lr_decay_iters: int = flag(
        0, "--lr-decay-iters", at_least=1, unit="steps", help="length of the decay; default: --train-iters"
    )
    lr_warmup_iters: int = flag(
        0, "--lr-warmup-iters", at_least=0, unit="steps", help="length of the linear rise to --lr"
    )
    lr_warmup_init: float = flag(0.0, "--lr-warmup-init", at_least=0, help="learning rate at the start of the warm-up")
    weight_decay: float = flag(0.01, "--weight-decay", at_least=0, at_most=1e3, help="decoupled weight decay of AdamW")
    beta1: float = flag(0.9, "--adam-beta1", at_least=0, below=1, help="decay of the first moment")
    beta2: float = flag(0.999, "--adam-beta2", at_least=0, below=1, help="decay of the second moment")
    # The optimizer computes in fp32, where a smaller eps is 0, and 0 / 0 is NaN.
    eps: float = flag(1e-8, "--adam-eps", at_least=1e-30, at_most=1, help="added to the root of the second moment")
    clip_grad: float = flag(1.0, "--clip-grad", at_least=0, help="clip the gradient norm to this value; 0: no limit")
    clip_grad_ema_decay: float | None = flag(
        None,
        "--clip_grad_ema_decay",
        above=0,
        below=1,
        help="clip adaptively, with a moving average of the norm with this decay, instead of --clip-grad",
    )
    max_skipped_steps: int = flag(
        5, "--max-skipped-steps", at_least=1, unit="steps", help="stop the run after this many skipped steps in a row"
    )
    use_distributed_optimizer: bool = flag(
        False, "--use-distributed-optimizer", help="share optimizer state over data ranks"
    )
    cpu_offload: bool = flag(
        False,
        "--optimizer-cpu-offload",
        help="keep fp32 main weights, moments and the EMA in the host's memory; the device has them in parts for the update",
    )
    overlap_grad_reduce: bool = flag(False, "--overlap-grad-reduce", help="exchange gradients during the backward pass")
    overlap_param_gather: bool = flag(
        False, "--overlap-param-gather", help="gather weights during the next forward pass"
    )
    ddp_bucket_size: int | None = flag(
        None,
        "--ddp-bucket-size",
        at_least=1,
        unit="numbers",
        help="bucket size of both overlaps; default: 40 million, or 1 million per data rank if larger",
    )
    grad_reduce_in_fp32: bool = switches(
        True, {"--accumulate-allreduce-grads-in-fp32": (True, "sum gradients in fp32; without --fp16 always so")}
    )
    selection: str = flag(
        "fused_torch_adamw",
        "--optimizer-selection",
        choices=OPTIMIZERS,
        help="every choice is AdamW; fused_ema_adamw also keeps an EMA of the weights, like --use-ema",
    )
    use_ema: bool = flag(False, "--use-ema", help="keep an EMA of the weights")
    ema_decay: float = flag(
        0.9999, "--ema-decay", at_least=0, below=1, help="decay of the EMA of the weights after its warm-up"
    )
    loss_scale: float | None = flag(None, "--loss-scale", above=0, at_most=_FP32_MOST, help="fp16: constant loss scale")
    initial_loss_scale: float = flag(
        2.0**32, "--initial-loss-scale", above=0, at_most=_FP32_MOST, help="fp16: the first loss scale"
    )
    min_loss_scale: float = flag(
        1.0, "--min-loss-scale", above=0, at_most=_FP32_MOST, help="fp16: lower limit of the loss scale"
    )
    loss_scale_window: int = flag(
        1000,
        "--loss-scale-window",
        at_least=1,
        unit="steps",
        help="fp16: steps without overflow before the scale doubles",
    )
    hysteresis: int = flag(2, "--hysteresis", at_least=1, help="fp16: number of overflows before the scale halves")

    def problems(self):
        if self.min_lr > self.lr or self.lr_warmup_init > self.lr:
            yield "lr", f"{self.lr}: must be at least --min-lr {self.min_lr} and --lr-warmup-init {self.lr_warmup_init}"
        if self.overlap_param_gather and not (self.use_distributed_optimizer and self.overlap_grad_reduce):
            yield "overlap_param_gather", "needs --use-distributed-optimizer and --overlap-grad-reduce"
        if self.min_loss_scale > self.initial_loss_scale:
            yield "min_loss_scale", f"{self.min_loss_scale}: is above --initial-loss-scale {self.initial_loss_scale}"
