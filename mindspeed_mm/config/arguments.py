"""Flags of the programs that run on ranks, and flags of published launch scripts that have no effect here.

The flags are fields of the configs that they fill: `run.py`, `sample.py`, `autoencoder.py` and the configs that these
name. `resolve.py` checks values against each other.
"""

from mindspeed_mm.config.run import ExtractionFlags, RunFlags
from mindspeed_mm.config.sample import JobFlags, ServeFlags
from mindspeed_mm.schema import Program

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


TRAIN = Program(
    flags=RunFlags,
    description="Train the denoiser of Open-Sora Plan v1.5, or go on with a run.",
    remarks="A run that was stopped goes on when it is started again with the same --save and --load. Without --nproc, torchrun, "
    "srun or mpirun there is one process.",
    examples=(
        "mindspeed-mm train --mm-model model.json --mm-data data.json --lr 1e-5 \\\n"
        "      --train-iters 5000 --model_custom_precision --save run1 --load run1",
        "mindspeed-mm train --nproc 8 --tensor-model-parallel-size 8 \\\n      --sequence-parallel ...",
        "srun --ntasks-per-node 8 mindspeed-mm train ...",
    ),
    without_effect=MEANINGLESS,
)
EXTRACT = Program(
    flags=ExtractionFlags,
    description="Encode a list once, so that training needs neither the autoencoder nor the text encoders.",
    remarks="Takes the flags of the training run, so that it makes the same features as that run; flags of the optimizer may be "
    "left out. The features go to feature_folder of the data JSON. Any number of processes may share the work; when it "
    "was stopped, it goes on where it ended. Then train with load_video_features and load_text_features true in the "
    "model JSON.",
    examples=(
        "mindspeed-mm extract --mm-model model.json --mm-data data.json \\\n      --model_custom_precision --nproc 8",
    ),
    without_effect=MEANINGLESS,
)
SAMPLE = Program(
    flags=JobFlags,
    description="Sample videos with Open-Sora Plan v1.5.",
    remarks="Each sample is an mp4 and a JSON record; a gallery shows all. A job that was stopped goes on with --resume.",
    examples=(
        'mindspeed-mm sample --mm-model sample.json --prompt "a red tram"',
        "mindspeed-mm sample --mm-model sample.json --prompt prompts.jsonl \\\n      --save out --resume --nproc 8",
        "mindspeed-mm sample --mm-model sample.json --load run1 --ema",
    ),
    without_effect={**MEANINGLESS, **MEANINGLESS_IN_SAMPLING},
)
SERVE = Program(
    flags=ServeFlags,
    description="A web page that samples videos, and OpenAI's videos API, of which it is a client (extra `serve`: "
    "pip install 'mindspeed_mm[serve]').",
    examples=(
        "mindspeed-mm serve --mm-model sample.json --save samples --port 7860",
        "mindspeed-mm serve --mm-model sample.json --save videos --api \\\n      --api-keys keys.txt",
    ),
    without_effect={**MEANINGLESS, **MEANINGLESS_IN_SAMPLING},
)
