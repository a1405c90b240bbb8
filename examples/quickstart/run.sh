#!/usr/bin/env bash
# The whole path on a laptop, in minutes: make clips, train a tiny model on two ranks, merge its shards, sample videos.
#   bash examples/quickstart/run.sh
# TRAIN_ITERS=50 CLIPS=64 DEVICE=cpu OUT=examples/quickstart/out can be changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. tools/environment.sh

OUT=${OUT:-examples/quickstart/out}
export DEVICE=${DEVICE:-cpu}
export NPUS_PER_NODE=2 TP=2 MASTER_PORT=${MASTER_PORT:-29517} LOG_DIR=$OUT/logs
rm -rf "$OUT"
mkdir -p "$OUT"

echo "== 1/4 clips, text encoders, autoencoder, configs"
"$PYTHON" examples/quickstart/prepare.py --out "$OUT" --clips "${CLIPS:-64}"

echo "== 2/4 training on 2 ranks, TP=2"
MM_DATA=$OUT/data.json MM_MODEL=$OUT/model.json SAVE=$OUT/checkpoints TRAIN_ITERS=${TRAIN_ITERS:-50} LR=1e-3 \
    SAVE_INTERVAL=25 LOG_INTERVAL=5 GRAD_ACC_STEP=2 \
    bash examples/opensoraplan1.5/pretrain_opensoraplan1_5.sh

echo "== 3/4 merging the shards"
"$PYTHON" examples/opensoraplan1.5/convert_mm_to_ckpt.py --load_dir "$OUT/checkpoints" --save_dir "$OUT/merged" --ema

echo "== 4/4 sampling two prompts"
MM_MODEL=$OUT/sample.json bash examples/opensoraplan1.5/inference_t2v_1_5.sh

echo "done:"
ls "$OUT"/samples/*.mp4
