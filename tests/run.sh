#!/usr/bin/env bash
# All tests, with the set-up they need: `bash tests/run.sh [pytest arguments]`
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. tools/environment.sh tests/requirements.txt

export OMP_NUM_THREADS=1
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m pyright --pythonpath "$PYTHON"   # or it looks for the packages of the python on PATH
exec "$PYTHON" -m pytest -q -n "${TEST_PROCESSES:-2}" --dist loadfile --no-loadscope-reorder "$@"
