#!/usr/bin/env bash
# The whole path on a laptop, with nothing to download: make clips, train a tiny model on two ranks, merge its shards,
# sample 48 prompts, and judge whether the videos obey them.
#   bash examples/quickstart/run.sh          some minutes on two cores
#   FAST=1 bash examples/quickstart/run.sh   the same programs in under a minute; the videos show little
# TRAIN_ITERS, MBS, LR, CLIPS, RANKS, SEED, DEVICE and OUT can be changed. For ablations (docs/quickstart.md): PREPARE_FLAGS=--dense,
# PREPARE_FLAGS="--caption-dropout 1" and WEIGHTS=live.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
STARTED=$SECONDS
. tools/environment.sh
. examples/quickstart/steps.sh
READY=$SECONDS

HERE=examples/quickstart
OUT=${OUT:-$HERE/out}
if [[ ${FAST:-0} == 1 ]]; then
    : "${TRAIN_ITERS:=6}" "${CLIPS:=24}" "${MBS:=4}" "${SEEN:=2}" "${UNSEEN:=1}" "${STEPS:=4}"
fi
: "${TRAIN_ITERS:=1300}" "${LR:=4e-3}" "${CLIPS:=960}" "${MBS:=32}" "${SEEN:=32}" "${UNSEEN:=16}" "${STEPS:=20}"
: "${WEIGHTS:=ema}" "${PREPARE_FLAGS:=}" "${SEED:=1234}"
export DEVICE=${DEVICE:-cpu} SEED MBS
export NPUS_PER_NODE=${RANKS:-2} TP=${RANKS:-2} LOG_DIR=$OUT/logs
rm -rf "$OUT"
mkdir -p "$OUT"

# stage NUMBER TEXT DONE: a header. DONE: percent of the work, without the set-up, that a default run has behind it here
stage() {
    local took=$((SECONDS - READY)) left=
    if (($3)) && [[ ${FAST:-0} != 1 ]]; then
        left=", about $((1 + took * (100 - $3) / $3 / 60)) min left"
    fi
    echo "== $1/6 $2 ($((SECONDS - STARTED)) s so far$left)"
}

stage 1 "clips, text encoders, configs" 0
# shellcheck disable=SC2086 # PREPARE_FLAGS are several words
step "$PYTHON" $HERE/prepare.py --out "$OUT" --clips "$CLIPS" --seen "$SEEN" --unseen "$UNSEEN" --steps "$STEPS" \
    --weights "$WEIGHTS" $PREPARE_FLAGS
echo "the judge on every tenth of the clips themselves:"
step "$PYTHON" $HERE/score.py "$OUT/data/data.txt" --every "$((CLIPS < 100 ? 1 : 10))"

stage 2 "encoding clips and captions once" 5
step "$PYTHON" tools/extract_features.py --mm-data "$OUT/data.json" --mm-model "$OUT/model.json" --device "$DEVICE" \
    --model_custom_precision --micro-batch-size "$MBS"

stage 3 "training on $TP ranks, TP=$TP" 9
step env MM_DATA="$OUT/data.json" MM_MODEL="$OUT/model.json" SAVE="$OUT/checkpoints" TRAIN_ITERS="$TRAIN_ITERS" LR="$LR" \
    SAVE_INTERVAL="$TRAIN_ITERS" LOG_INTERVAL=50 RECOM_FFN_LAYERS=0 \
    bash examples/opensoraplan1.5/pretrain_opensoraplan1_5.sh \
    --lr-decay-style cosine --lr-decay-iters "$TRAIN_ITERS" --min-lr 0 --ema-decay 0.99

stage 4 "merging the shards" 94
MERGE=()
if [[ $WEIGHTS == ema ]]; then
    MERGE=(--ema)
fi
step "$PYTHON" examples/opensoraplan1.5/convert_mm_to_ckpt.py --load_dir "$OUT/checkpoints" --save_dir "$OUT/merged" "${MERGE[@]}"

stage 5 "sampling $((SEEN + UNSEEN)) prompts" 94
step env MM_MODEL="$OUT/sample.json" bash examples/opensoraplan1.5/inference_t2v_1_5.sh

stage 6 "do the videos obey their prompts?" 99
step "$PYTHON" $HERE/score.py "$OUT/samples" --prompts "$OUT/prompts.txt" --json "$OUT/score.json" --shuffled 50
step "$PYTHON" $HERE/sheet.py "$OUT/samples" "$OUT/score.json" "$OUT/judged.png"
echo "done in $((SECONDS - STARTED)) s"
echo "next: bash examples/finetune/run.sh teaches such a model a new colour and shape; docs/tutorial.md goes the same path by hand"
