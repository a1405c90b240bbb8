#!/usr/bin/env bash
# Make the quickstart's autoencoder anew: train it on clips of the set, measure its latents, judge what it keeps.
#   bash examples/quickstart/train_vae.sh
# Replaces wfvae.pt and wfvae_statistics.json beside this file. CLIPS, ITERS, RANKS and OUT can be
# changed, and WEIGHTS=FILE starts from other weights than fresh ones.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. tools/environment.sh
. examples/quickstart/steps.sh

HERE=examples/quickstart
OUT=${OUT:-$HERE/out/vae}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
FILES=(--mm-model "$HERE/autoencoder.json" --mm-data "$OUT/data.json" --device "${DEVICE:-cpu}")
mkdir -p "$OUT"

echo "== 1/3 clips"
step "$PYTHON" "$HERE/prepare.py" --out "$OUT" --clips "${CLIPS:-960}"

echo "== 2/3 training the autoencoder"
step "$PYTHON" -m mindspeed_mm.torchrun --nproc_per_node "${RANKS:-1}" --local-addr localhost \
    ${MASTER_PORT:+--master_port "$MASTER_PORT"} tools/train_wfvae.py "${FILES[@]}" --train-iters "${ITERS:-6000}" ${WEIGHTS:+--weights "$WEIGHTS"} --global-batch-size 4 \
    --micro-batch-size $((4 / ${RANKS:-1})) --distance l2 --wavelet-weight 0.1 \
    --lr 3e-3 --lr-decay-style cosine --lr-warmup-iters 20 --ema-decay 0.995 \
    --export "$HERE/wfvae.pt" --export-dtype fp16

echo "== 3/3 what it keeps"
step "$PYTHON" tools/eval_vae.py "${FILES[@]}" --weights "$HERE/wfvae.pt" --clips 96 --batch-size 8 \
    --video "$OUT/side_by_side.mp4" --write-statistics "$HERE/wfvae_statistics.json"
