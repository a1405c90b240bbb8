"""The launch flags: Megatron's names and meanings, and those of the published scripts that mean nothing here.

Parsing only. What the values imply together is decided in `resolve.py`.
"""

import argparse

from mindspeed_mm.config.reader import did_you_mean
from mindspeed_mm.config.sample import GUIDANCE_MODES
from mindspeed_mm.errors import ConfigError

# Flags of the published launch scripts that decide nothing: the model JSON describes the network, and its precision
# rules are fixed. They are accepted, and named once in the log. Flag -> number of values.
MEANINGLESS = {
    "--num-layers": 1,
    "--hidden-size": 1,
    "--num-attention-heads": 1,
    "--seq-length": 1,
    "--max-position-embeddings": 1,
    "--attention-dropout": 1,
    "--hidden-dropout": 1,
    "--tokenizer-type": 1,
    "--vocab-size": 1,
    "--position-embedding-type": 1,
    "--rotary-base": 1,
    "--normalization": 1,
    "--swiglu": 0,
    "--no-masked-softmax-fusion": 0,
    "--no-gradient-accumulation-fusion": 0,
    "--use-fused-rmsnorm": 0,
    "--use-fused-swiglu": 0,
    "--use-fused-rotary-pos-emb": 0,
    "--use-flash-attn": 0,
    "--use-mcore-models": 0,
    "--qk-layernorm": 0,
    "--fp32-residual-connection": 0,
    "--attention-softmax-in-fp32": 0,
    "--data-parallel-random-init": 0,
    "--distributed-backend": 1,
}

# Of the training flags, those that the published sampling script gives as well.
MEANINGLESS_IN_SAMPLING = {
    "--global-batch-size": 1,
    "--lr": 1,
    "--min-lr": 1,
    "--train-iters": 1,
    "--weight-decay": 1,
    "--clip-grad": 1,
    "--adam-beta1": 1,
    "--adam-beta2": 1,
    "--optimizer-selection": 1,
    "--no-load-optim": 0,
    "--no-load-rng": 0,
    "--no-save-optim": 0,
    "--no-save-rng": 0,
}


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaints are ConfigErrors."""

    def error(self, message):
        raise ConfigError(message)


def parse_train(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Flags of `pretrain_opensoraplan.py` -> their values, and the meaningless ones that were given."""
    parser = _Parser(prog="pretrain_opensoraplan.py", description="Train Open-Sora Plan v1.5.", allow_abbrev=False)
    parser.add_argument("--mm-data", required=True, metavar="JSON", help="data.json: lists, filters, loader")
    _add_common(parser)
    _add_batches(parser)
    _add_data(parser)
    _add_optimizer(parser)
    _add_checkpoints(parser)
    _add_recompute(parser)
    _add_evaluation(parser)
    _add_reports(parser)
    return _parse(parser, argv, MEANINGLESS)


def parse_sample(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Flags of `inference.py` -> their values, and the meaningless ones that were given."""
    parser = _Parser(prog="inference.py", description="Sample videos with Open-Sora Plan v1.5.", allow_abbrev=False)
    _add_common(parser)
    _add_sampling(parser)
    group = parser.add_argument_group("the job")
    group.add_argument(
        "--prompt",
        metavar="TEXT|FILE",
        help="instead of the JSON's prompt; .txt: a prompt per line; .jsonl: an object per line with prompt and, "
        "as it likes, negative_prompt, seed, input_size, guidance_scale, guidance_rescale, num_inference_steps",
    )
    group.add_argument(
        "--micro-batch-size", type=int, metavar="N", help="prompts sampled together; default: the JSON's"
    )
    group.add_argument("--resume", action="store_true", help="skip samples that are there with the same settings")
    group.add_argument(
        "--cfg-parallel", action="store_true", help="the two halves of guidance on two ranks; halves the data ranks"
    )
    return _parse(parser, argv, {**MEANINGLESS, **MEANINGLESS_IN_SAMPLING})


def parse_serve(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Flags of `python -m mindspeed_mm.serve` -> their values, and the meaningless ones that were given."""
    parser = _Parser(
        prog="python -m mindspeed_mm.serve", description="A web page that samples videos.", allow_abbrev=False
    )
    _add_common(parser)
    _add_sampling(parser)
    group = parser.add_argument_group("the page")
    group.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen; default: this machine only"
    )
    group.add_argument("--port", type=int, default=7860, metavar="N", help="default 7860; 0: any free port")
    group.add_argument("--max-queue", type=int, default=16, metavar="N", help="requests that may wait (default 16)")
    return _parse(parser, argv, {**MEANINGLESS, **MEANINGLESS_IN_SAMPLING})


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("weights and output")
    group.add_argument("--load", metavar="DIR", help="a Megatron checkpoint directory, not predictor.from_pretrained")
    group.add_argument("--ema", action="store_true", help="with --load: the EMA weights")
    group.add_argument("--save-path", metavar="DIR", help="instead of the JSON's save_path")
    group.add_argument("--bf16", action="store_true", help="instead of the JSON's weight_dtype")
    group.add_argument("--fp16", action="store_true", help="instead of the JSON's weight_dtype")
    group = parser.add_argument_group("speed and memory")
    group.add_argument(
        "--cfg-mode",
        default="auto",
        choices=GUIDANCE_MODES,
        help="both halves of guidance in one batch, or one after the other; default: by the device's memory",
    )
    group.add_argument("--offload", action="store_true", help="components that are not at work wait on the host")
    group.add_argument("--compile", action="store_true", help="torch.compile the denoiser's blocks (CUDA, CPU)")
    group.add_argument(
        "--step-cache",
        type=int,
        default=1,
        metavar="N",
        help="run the denoiser's inner stages at every N-th step only: faster, and another video (default 1: off)",
    )


def _parse(
    parser: argparse.ArgumentParser, argv: list[str], without_effect: dict[str, int]
) -> tuple[argparse.Namespace, list[str]]:
    group = parser.add_argument_group("accepted without effect", " ".join(without_effect))
    for flag, values in without_effect.items():
        kind = {"nargs": values} if values else {"action": "store_true"}
        group.add_argument(flag, dest=f"_meaningless{flag}", help=argparse.SUPPRESS, default=None, **kind)
    values, unknown = parser.parse_known_args(argv)
    if unknown:
        known = [option for action in parser._actions for option in action.option_strings]
        flag = unknown[0].split("=")[0]
        raise ConfigError(f"{flag}: unknown flag{did_you_mean(flag, known)} (--help lists them)")
    given = vars(values)
    found = [flag for flag in without_effect if given.pop(f"_meaningless{flag}") is not None]
    return values, found


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mm-model", required=True, metavar="JSON", help="model JSON: the networks and their weights")
    parser.add_argument("--seed", type=int, default=1234, metavar="N", help="of all random numbers (default 1234)")
    group = parser.add_argument_group("device and layout")
    group.add_argument(
        "--device", default="auto", choices=("auto", "cpu", "cuda", "npu"), help="default: the best there is"
    )
    group.add_argument(
        "--mindspeed", default="auto", choices=("auto", "on", "off"), help="NPU: use MindSpeed's adaptor"
    )
    group.add_argument(
        "--tensor-model-parallel-size", type=int, default=1, metavar="N", help="ranks that share each layer"
    )
    group.add_argument("--sequence-parallel", action="store_true", help="split activations over those ranks too")
    group.add_argument(
        "--context-parallel-size", type=int, default=1, metavar="N", help="ranks that share each sequence"
    )
    group.add_argument(
        "--context-parallel-algo", default="ulysses_cp_algo", choices=("ulysses_cp_algo",), help="heads <-> tokens"
    )
    group.add_argument("--pipeline-model-parallel-size", type=int, default=1, metavar="1", help="must be 1")
    group.add_argument("--distributed-timeout-minutes", type=float, default=10, metavar="MIN", help="of a collective")


def _add_batches(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("batches")
    group.add_argument("--micro-batch-size", type=int, default=1, metavar="N", help="samples of a rank at a time")
    group.add_argument(
        "--global-batch-size", type=int, metavar="N", help="samples of a step; default: one micro-batch each"
    )
    group.add_argument("--train-iters", type=int, required=True, metavar="N", help="steps")
    group.add_argument("--num-workers", type=int, metavar="N", help="processes that decode; default: the data JSON's")


def _add_data(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    group.add_argument(
        "--probe", action="store_true", help="take size, fps and length that the lists leave out from the files"
    )
    group.add_argument(
        "--max-bad-fraction", type=float, default=0.5, metavar="X", help="of the files tried; more bad ones end the run"
    )
    group.add_argument(
        "--data-ledger", metavar="DIR", help="lists of dropped rows and of bad files; default: --save/data"
    )


def _add_optimizer(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("precision and optimizer")
    group.add_argument("--bf16", action="store_true", help="bf16 weights, fp32 main weights")
    group.add_argument("--fp16", action="store_true", help="fp16 weights, fp32 main weights, loss scaling")
    group.add_argument(
        "--model_custom_precision",
        action="store_true",
        help="precision per component, from the JSON (ae.dtype, weight_dtype)",
    )
    group.add_argument("--loss-scale", type=float, metavar="X", help="fp16: constant loss scale")
    group.add_argument("--initial-loss-scale", type=float, default=2.0**32, metavar="X")
    group.add_argument("--min-loss-scale", type=float, default=1.0, metavar="X")
    group.add_argument("--loss-scale-window", type=int, default=1000, metavar="N")
    group.add_argument("--hysteresis", type=int, default=2, metavar="N")
    group.add_argument(
        "--optimizer-selection",
        default="fused_torch_adamw",
        choices=("fused_ema_adamw", "fused_torch_adamw", "fused_adamw"),
        help="all are AdamW; fused_ema_adamw keeps an EMA of the weights",
    )
    group.add_argument("--use-ema", action="store_true", help="keep an EMA of the weights")
    group.add_argument("--ema-decay", type=float, default=0.9999, metavar="X", help="its decay after the warm-up")
    group.add_argument("--lr", type=float, required=True, metavar="X")
    group.add_argument("--min-lr", type=float, default=0.0, metavar="X")
    group.add_argument(
        "--lr-decay-style", default="constant", choices=("constant", "linear", "cosine", "inverse-square-root")
    )
    group.add_argument("--lr-decay-iters", type=int, metavar="N", help="default: --train-iters")
    group.add_argument("--lr-warmup-iters", type=int, default=0, metavar="N")
    group.add_argument("--lr-warmup-init", type=float, default=0.0, metavar="X")
    group.add_argument("--weight-decay", type=float, default=0.01, metavar="X")
    group.add_argument("--adam-beta1", type=float, default=0.9, metavar="X")
    group.add_argument("--adam-beta2", type=float, default=0.999, metavar="X")
    group.add_argument("--adam-eps", type=float, default=1e-8, metavar="X")
    group.add_argument("--clip-grad", type=float, default=1.0, metavar="X", help="largest gradient norm; 0: no limit")
    group.add_argument(
        "--clip_grad_ema_decay", type=float, metavar="X", help="adaptive gradient clipping with this decay, instead"
    )
    group.add_argument("--max-skipped-steps", type=int, default=5, metavar="N", help="in a row, before the run stops")
    group.add_argument("--use-distributed-optimizer", action="store_true", help="share optimizer state over data ranks")
    group.add_argument("--overlap-grad-reduce", action="store_true")
    group.add_argument("--overlap-param-gather", action="store_true")
    group.add_argument("--accumulate-allreduce-grads-in-fp32", action="store_true", help="always so with --bf16")


def _add_checkpoints(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("checkpoints")
    group.add_argument("--save", metavar="DIR")
    group.add_argument("--load", metavar="DIR", help="resume from here if it holds a checkpoint")
    group.add_argument("--save-interval", type=int, default=1000, metavar="N", help="steps")
    group.add_argument(
        "--ckpt-format",
        default="torch",
        choices=("torch", "torch_dist"),
        help="Megatron's layout, or dist_checkpointing",
    )
    group.add_argument("--async-save", action="store_true", help="write in the background, while training goes on")
    group.add_argument("--keep-last-n", type=int, metavar="N", help="delete older checkpoints; default: keep all")
    group.add_argument("--keep-every-n", type=int, metavar="N", help="never delete iterations that N divides")
    for flag in ("--no-save-optim", "--no-save-rng", "--no-load-optim", "--no-load-rng"):
        group.add_argument(flag, action="store_true")


def _add_evaluation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("evaluation while training")
    group.add_argument("--eval-interval", type=int, default=1000, metavar="N", help="steps")
    group.add_argument("--eval-iters", type=int, default=10, metavar="N", help="micro-batches of each data rank")
    group.add_argument("--eval-data", metavar="DATA.TXT", help="held-out list; without it nothing is evaluated")
    group.add_argument("--sample-interval", type=int, default=1000, metavar="N", help="steps")
    group.add_argument(
        "--mm-sample", metavar="JSON", help="inference JSON: what to sample, from EMA weights; without it nothing is"
    )


def _add_reports(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("reports")
    group.add_argument("--log-interval", type=int, default=100, metavar="N", help="steps between lines of the log")
    group.add_argument("--tensorboard-dir", metavar="DIR", help="write TensorBoard events (needs the package)")
    group.add_argument("--tensorboard-log-interval", type=int, default=1, metavar="N", help="steps")
    group.add_argument(
        "--wandb-project", metavar="NAME", help="report to Weights & Biases (needs the package and a login)"
    )
    group.add_argument("--wandb-exp-name", metavar="NAME", help="name of the run there")
    group.add_argument("--wandb-save-dir", metavar="DIR", help="its local files")
    group.add_argument("--mm-tool", metavar="JSON", help="tools.json: the profiler's settings")
    group.add_argument("--peak-tflops", type=float, metavar="X", help="of one device, for MFU; default: by its name")
    group.add_argument(
        "--hang-timeout-minutes",
        type=float,
        default=15,
        metavar="MIN",
        help="without a step, before stacks are printed",
    )


def _add_recompute(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("recomputation: whole blocks, or only the feed-forwards of blocks")
    group.add_argument("--recompute-granularity", choices=("full", "selective"))
    group.add_argument("--recompute-method", choices=("block", "uniform"))
    group.add_argument("--compile", action="store_true", help="torch.compile the denoiser's blocks (CUDA, CPU)")
    group.add_argument("--recompute-num-layers", type=int, default=0, metavar="N", help="the first N blocks, whole")
    group.add_argument("--selective_recom", action="store_true", help="feed-forwards only")
    group.add_argument("--recom_ffn_layers", type=int, default=32, metavar="N", help="of the first N blocks")
