#!/usr/bin/env bash
# Sample videos with Open-Sora Plan v1.5. Settings come from the environment (see common.sh), further flags from the
# command line: `TP=1 NPUS_PER_NODE=1 bash examples/opensoraplan1.5/inference_t2v_1_5.sh --prompt "a red tram"`
set -euo pipefail
# shellcheck source=examples/opensoraplan1.5/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

MM_MODEL=${MM_MODEL:-examples/opensoraplan1.5/inference_t2v_model1_5.json}
TP=${TP:-1}
CP=${CP:-1}

ARGS=(
    --device "$DEVICE"
    --tensor-model-parallel-size "$TP"
    --pipeline-model-parallel-size 1
    --context-parallel-size "$CP"
    --distributed-timeout-minutes "$TIMEOUT_MINUTES"
    --seed "${SEED:-1235}"
)
if ((TP > 1)); then
    ARGS+=(--sequence-parallel)
fi

launch inference.py --mm-model "$MM_MODEL" "${ARGS[@]}" "$@"
