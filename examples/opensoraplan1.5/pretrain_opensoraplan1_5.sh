#!/usr/bin/env bash
# Train Open-Sora Plan v1.5. Settings come from the environment (see common.sh and below), further flags from the
# command line: `TP=4 SAVE=/data/run1 bash examples/opensoraplan1.5/pretrain_opensoraplan1_5.sh --train-iters 5000`
set -euo pipefail
# shellcheck source=examples/opensoraplan1.5/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

MM_DATA=${MM_DATA:-examples/opensoraplan1.5/data.json}
MM_MODEL=${MM_MODEL:-examples/opensoraplan1.5/model_opensoraplan1_5.json}
MM_TOOL=${MM_TOOL:-configs/tool/tools.json}
SAVE=${SAVE:-checkpoints/opensoraplan1_5}   # checkpoints are written here, and resumed from here
LOAD=${LOAD:-$SAVE}

TP=${TP:-8}                                 # tensor parallel
CP=${CP:-1}                                 # context parallel (Ulysses)
MBS=${MBS:-1}                               # micro-batch of a rank
GRAD_ACC_STEP=${GRAD_ACC_STEP:-1}           # micro-batches per step
WORLD_SIZE=$((NPUS_PER_NODE * NNODES))
GBS=${GBS:-$((WORLD_SIZE * GRAD_ACC_STEP * MBS / CP / TP))}

PARALLEL_ARGS=(
    --device "$DEVICE"
    --tensor-model-parallel-size "$TP"
    --pipeline-model-parallel-size 1
    --context-parallel-size "$CP"
    --micro-batch-size "$MBS"
    --global-batch-size "$GBS"
    --use-distributed-optimizer
    --distributed-timeout-minutes "$TIMEOUT_MINUTES"
)
if ((TP > 1)); then
    PARALLEL_ARGS+=(--sequence-parallel)
fi

PRECISION_ARGS=(--model_custom_precision)   # precision per component: weight_dtype and ae.dtype of the model JSON

OPTIMIZER_ARGS=(
    --optimizer-selection fused_ema_adamw
    --use-ema
    --lr "${LR:-1e-5}"
    --min-lr "${MIN_LR:-${LR:-1e-5}}"
    --lr-warmup-init "${LR:-1e-5}"
    --lr-warmup-iters 0
    --lr-decay-style constant
    --adam-beta1 0.9
    --adam-beta2 0.999
    --adam-eps 1e-15
    --weight-decay 1e-4
    --clip-grad 1.0
    --clip_grad_ema_decay 0.99
    --accumulate-allreduce-grads-in-fp32
    --seed "${SEED:-1024}"
    --train-iters "${TRAIN_ITERS:-100000000}"
)
RECOM_FFN_LAYERS=${RECOM_FFN_LAYERS:-32}    # first blocks whose feed-forwards are recomputed; 0: none
if ((RECOM_FFN_LAYERS > 0)); then           # the flag excludes --recompute-num-layers
    OPTIMIZER_ARGS+=(--selective_recom --recom_ffn_layers "$RECOM_FFN_LAYERS")
fi

OUTPUT_ARGS=(
    --save "$SAVE"
    --load "$LOAD"
    --save-interval "${SAVE_INTERVAL:-1000}"
    --log-interval "${LOG_INTERVAL:-1}"
)

launch pretrain_opensoraplan.py \
    --mm-data "$MM_DATA" --mm-model "$MM_MODEL" --mm-tool "$MM_TOOL" \
    "${PARALLEL_ARGS[@]}" "${PRECISION_ARGS[@]}" "${OPTIMIZER_ARGS[@]}" "${OUTPUT_ARGS[@]}" "$@"
