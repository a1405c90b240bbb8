#!/usr/bin/env bash
# What only an accelerator can tell, in eight minutes on one card and one Markdown file:
#   bash benchmarks/accelerator.sh [--device cuda|npu] [--output FILE]
#   bash benchmarks/accelerator.sh --dry-run     # the same programs at small sizes on a CPU
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. tools/environment.sh tests/requirements.txt
exec "$PYTHON" benchmarks/accelerator.py "$@"
