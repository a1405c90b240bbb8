#!/usr/bin/env bash
# Finetuning on a laptop, with nothing to download: train a tiny base that has never seen one colour and one shape, teach it
# both with a LoRA from 24 clips, sample at three scales of it, and judge what the videos show.
#   bash examples/finetune/run.sh          some minutes on two cores, most of them for the base
#   FAST=1 bash examples/finetune/run.sh   the same programs in about a minute; the videos show little
#   BASE=1 bash examples/finetune/run.sh   keeps the base in OUT of an earlier run, for another adapter
# BASE_ITERS, ADAPTER_ITERS, KIND, RANK, ALPHA, TARGETS, LR, CLIPS, RANKS, SEED, DEVICE and OUT can be changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
STARTED=$SECONDS
. tools/environment.sh
. examples/quickstart/steps.sh

HERE=examples/finetune
OUT=${OUT:-$HERE/out}
if [[ ${FAST:-0} == 1 ]]; then
    : "${BASE_ITERS:=4}" "${ADAPTER_ITERS:=4}" "${CLIPS:=16}" "${MBS:=4}" "${PROMPTS:=1}" "${STEPS:=2}"
fi
: "${BASE_ITERS:=1000}" "${ADAPTER_ITERS:=300}" "${CLIPS:=640}" "${MBS:=16}" "${PROMPTS:=8}" "${STEPS:=20}"
: "${KIND:=lora}" "${RANK:=2}" "${ALPHA:=$RANK}" "${TARGETS:=attention}" "${LR:=1e-2}" "${SCALES:=0 0.75 1}" "${SEED:=1234}"
RANKS=${RANKS:-1} DEVICE=${DEVICE:-cpu} # a network of this size is three times as slow on two ranks: they mostly wait
export -n RANK # torch reads this name as the number of a process, and one process would wait for number 0
export LOG_DIR=$OUT/logs
FLAGS=(--device "$DEVICE" --nproc "$RANKS" --tensor-model-parallel-size "$RANKS" --sequence-parallel
    --model_custom_precision --use-distributed-optimizer --lr-decay-style cosine --clip_grad_ema_decay 0.99 --use-ema
    --seed "$SEED" --log-interval 50)
MM=("$PYTHON" -m mindspeed_mm)

if [[ ${BASE:-0} != 1 ]]; then
    rm -rf "$OUT"
    mkdir -p "$OUT"
    echo "== 1/5 clips, text encoders, configs"
    step "$PYTHON" $HERE/prepare_new.py --out "$OUT" --clips "$CLIPS" --prompts "$PROMPTS" --steps "$STEPS"
    for name in base new; do
        step "${MM[@]}" extract --mm-data "$OUT/$name.json" --mm-model "$OUT/model.json" --device "$DEVICE" \
            --model_custom_precision --micro-batch-size "$MBS"
    done

    echo "== 2/5 training the base"
    step "${MM[@]}" train --mm-data "$OUT/base.json" --mm-model "$OUT/model.json" --save "$OUT/base" "${FLAGS[@]}" \
        --train-iters "$BASE_ITERS" --save-interval "$BASE_ITERS" --micro-batch-size "$MBS" --lr 3e-3 --ema-decay 0.99
    step "${MM[@]}" merge --load "$OUT/base" --save "$OUT/merged" --ema
fi

echo "== 3/5 training the adapter: $KIND, rank $RANK, on $TARGETS"
rm -rf "$OUT/adapter" "$OUT/samples"
ADAPTER_STARTED=$SECONDS
# shellcheck disable=SC2086 # TARGETS are several words
step "${MM[@]}" train --mm-data "$OUT/new.json" --mm-model "$OUT/adapter.json" --save "$OUT/adapter" "${FLAGS[@]}" \
    --train-iters "$ADAPTER_ITERS" --save-interval "$ADAPTER_ITERS" --micro-batch-size $((MBS < 12 ? MBS : 12)) --lr "$LR" \
    --ema-decay 0.98 --adapter "$KIND" --adapter-rank "$RANK" --adapter-alpha "$ALPHA" --adapter-targets $TARGETS
echo "the adapter took $((SECONDS - ADAPTER_STARTED)) s"
step "${MM[@]}" adapter convert --load "$OUT/adapter" --ema --save "$OUT/peft"

echo "== 4/5 sampling $((4 * PROMPTS)) prompts at the scales $SCALES"
FOLDERS=()
for scale in $SCALES; do
    step "${MM[@]}" sample --mm-model "$OUT/sample.json" --adapter "$OUT/peft=$scale" --save "$OUT/samples/$scale" \
        --device "$DEVICE" --seed "$SEED"
    FOLDERS+=("$OUT/samples/$scale")
done

echo "== 5/5 what do the videos show?"
step "$PYTHON" $HERE/score_groups.py "${FOLDERS[@]}" --prompts "$OUT/prompts.txt" --groups "$OUT/groups.json" --json "$OUT/table.json"
echo "done in $((SECONDS - STARTED)) s"
