"""Flags of the programs that run on ranks, and flags of published launch scripts that have no effect here.

The flags are fields of the configs that they fill: `run.py`, `sample.py`, `autoencoder.py` and the configs that these
name. `resolve.py` checks values against each other.
"""

from mindspeed_mm.config.run import ExtractionFlags, RunFlags
from mindspeed_mm.config.sample import JobFlags, ServeFlags
from mindspeed_mm.schema import Given, parse

# Flags of the published launch scripts without effect: the model JSON describes the network, and its precision rules
# are fixed. They are accepted and logged once. Flag -> number of values.
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

# Training flags that the published sampling script also passes.
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


def parse_train(argv: list[str]) -> Given[RunFlags]:
    """Flags of `pretrain_opensoraplan.py`."""
    return parse(
        RunFlags,
        argv,
        prog="pretrain_opensoraplan.py",
        description="Train Open-Sora Plan v1.5.",
        without_effect=MEANINGLESS,
    )


def parse_extract(argv: list[str]) -> Given[ExtractionFlags]:
    """Flags of `tools/extract_features.py`."""
    return parse(
        ExtractionFlags,
        argv,
        prog="extract_features.py",
        description="Encode a list once, so that training needs neither the autoencoder nor the text encoders. Takes the "
        "flags of the training run, so that it makes the same features as that run; flags of the optimizer may be "
        "left out. The features go to feature_folder of the data JSON. Runs in one process or under torchrun with any "
        "number; when it was stopped, it goes on where it ended. Then train with load_video_features and "
        "load_text_features true in the model JSON.",
        without_effect=MEANINGLESS,
    )


def parse_sample(argv: list[str]) -> Given[JobFlags]:
    """Flags of `inference.py`."""
    return parse(
        JobFlags,
        argv,
        prog="inference.py",
        description="Sample videos with Open-Sora Plan v1.5.",
        without_effect={**MEANINGLESS, **MEANINGLESS_IN_SAMPLING},
    )


def parse_serve(argv: list[str]) -> Given[ServeFlags]:
    """Flags of `python -m mindspeed_mm.serve`."""
    return parse(
        ServeFlags,
        argv,
        prog="python -m mindspeed_mm.serve",
        description="A web page that samples videos.",
        without_effect={**MEANINGLESS, **MEANINGLESS_IN_SAMPLING},
    )
