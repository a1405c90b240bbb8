# What both launch scripts need: the repository as working directory, the device's environment, the launcher.
# Sourced, not run. Every setting is an environment variable with a default.

cd "$(dirname "${BASH_SOURCE[0]}")/../.."

DEVICE=${DEVICE:-auto}                                     # auto | cpu | cuda | npu
NPUS_PER_NODE=${NPUS_PER_NODE:-${GPUS_PER_NODE:-8}}        # processes on this node, one per device
NNODES=${NNODES:-1}
NODE_RANK=${NODE_RANK:-0}
MASTER_ADDR=${MASTER_ADDR:-localhost}
MASTER_PORT=${MASTER_PORT:-12345}
PYTHON=${PYTHON:-python3}
LOG_DIR=${LOG_DIR:-logs}

export CUDA_DEVICE_MAX_CONNECTIONS=1   # Megatron orders its launches by one queue
if [[ $DEVICE == npu || ($DEVICE == auto && -e /dev/davinci0) ]]; then
    CANN_ENV=${CANN_ENV:-/usr/local/Ascend/ascend-toolkit/set_env.sh}
    if [[ -f $CANN_ENV ]]; then
        set +u
        # shellcheck disable=SC1090
        source "$CANN_ENV"
        set -u
    fi
    export ASCEND_SLOG_PRINT_TO_STDOUT=${ASCEND_SLOG_PRINT_TO_STDOUT:-0}
    export ASCEND_GLOBAL_LOG_LEVEL=${ASCEND_GLOBAL_LOG_LEVEL:-3}
    export TASK_QUEUE_ENABLE=${TASK_QUEUE_ENABLE:-1}
    export MULTI_STREAM_MEMORY_REUSE=${MULTI_STREAM_MEMORY_REUSE:-1}
    export PYTORCH_NPU_ALLOC_CONF=${PYTORCH_NPU_ALLOC_CONF:-expandable_segments:True}
    export COMBINED_ENABLE=${COMBINED_ENABLE:-1}
    export CPU_AFFINITY_CONF=${CPU_AFFINITY_CONF:-1}
    export HCCL_CONNECT_TIMEOUT=${HCCL_CONNECT_TIMEOUT:-1800}
fi
if [[ $DEVICE == cpu ]]; then
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}   # ranks share the cores
fi

# launch SCRIPT FLAGS...: one process per device, the log also in $LOG_DIR
launch() {
    local name log
    name=$(basename "$1" .py)
    mkdir -p "$LOG_DIR"
    log=$LOG_DIR/${name}_$(date +%Y%m%d_%H%M%S)_node${NODE_RANK}.log
    "$PYTHON" -m torch.distributed.run \
        --nproc_per_node "$NPUS_PER_NODE" \
        --nnodes "$NNODES" \
        --node_rank "$NODE_RANK" \
        --master_addr "$MASTER_ADDR" \
        --master_port "$MASTER_PORT" \
        "$@" 2>&1 | tee "$log"
}
