# shellcheck shell=bash
# What both launch scripts need: the repository as working directory, the device's environment, the launcher.
# Sourced, not run. Every setting is an environment variable with a default.

cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1

DEVICE=${DEVICE:-auto}                                     # auto | cpu | cuda | npu
NPUS_PER_NODE=${NPUS_PER_NODE:-${GPUS_PER_NODE:-8}}        # processes on this node, one per device
NNODES=${NNODES:-1}
NODE_RANK=${NODE_RANK:-0}
MASTER_ADDR=${MASTER_ADDR:-localhost}
MASTER_PORT=${MASTER_PORT:-}                               # one node takes a free one; several meet at 12345
PYTHON=${PYTHON:-python3}
LOG_DIR=${LOG_DIR:-logs}
TIMEOUT_MINUTES=${TIMEOUT_MINUTES:-20}                     # a collective that takes longer ends the run

if ((NODE_RANK < 0 || NODE_RANK >= NNODES)); then
    echo "error: NODE_RANK $NODE_RANK: must be 0 to $((NNODES - 1)), as NNODES is $NNODES" >&2
    exit 1
fi
if ((NNODES > 1)) && [[ $MASTER_ADDR == localhost || $MASTER_ADDR == 127.* ]]; then
    echo "error: MASTER_ADDR $MASTER_ADDR with NNODES $NNODES: set it to the address of node 0, the same on every node" >&2
    exit 1
fi
# The programs set the variables of NPUs and of SOCKET_IFNAME themselves: mindspeed_mm/platforms/variables.py.
export CUDA_DEVICE_MAX_CONNECTIONS=1   # Megatron orders its launches by one queue
if [[ $DEVICE == npu || ($DEVICE == auto && -e /dev/davinci0) ]]; then
    CANN_ENV=${CANN_ENV:-/usr/local/Ascend/ascend-toolkit/set_env.sh}
    if [[ -f $CANN_ENV ]]; then
        set +u
        # shellcheck disable=SC1090
        source "$CANN_ENV"
        set -u
    fi
fi
if [[ $DEVICE == cpu ]]; then
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}   # ranks share the cores
fi

# launch SCRIPT FLAGS...: one process per device, the log also in $LOG_DIR. The launcher takes the place of this shell, so
# that signals to it reach the ranks and their exit code is the script's.
launch() {
    local name log meet
    name=$(basename "$1" .py)
    mkdir -p "$LOG_DIR"
    log=$LOG_DIR/${name}_$(date +%Y%m%d_%H%M%S)_node${NODE_RANK}.log
    if ((NNODES > 1)) || [[ -n $MASTER_PORT ]]; then
        meet=(--nnodes "$NNODES" --node_rank "$NODE_RANK" --master_addr "$MASTER_ADDR" --master_port "${MASTER_PORT:-12345}")
    else
        meet=(--nnodes 1 --local-addr localhost)
    fi
    exec "$PYTHON" -m mindspeed_mm.torchrun --log-file "$log" --nproc_per_node "$NPUS_PER_NODE" "${meet[@]}" "$@"
}
