# shellcheck shell=bash
# For scripts of several steps: a signal to the script goes to the step at work, and the script ends with its exit code.
# Sourced, not run.

STOPPED=     # the signal that came
_CHILD=
_HANDED_ON=
_GUARD=()
if setpriv --pdeathsig TERM true 2>/dev/null; then
    _GUARD=(setpriv --pdeathsig TERM)   # even if this shell is killed, the step ends
fi

_hand_on() {
    STOPPED=$1 _HANDED_ON=1
    if [[ -z $_CHILD ]]; then
        exit $((128 + $(kill -l "$1")))
    fi
    kill -s "$1" "$_CHILD" 2>/dev/null || true
}
for _signal in TERM USR1 HUP INT; do
    # shellcheck disable=SC2064 # the name now
    trap "_hand_on $_signal" "$_signal"
done

# step COMMAND...: run it; the script ends with its exit code if that is not 0, or if a signal has come
step() {
    local code again
    set -m   # a process group of its own: Ctrl-C in a terminal reaches it once, by the trap
    "${_GUARD[@]}" "$@" &
    set +m
    _CHILD=$! code=0
    wait "$_CHILD" || code=$?
    while [[ -n $_HANDED_ON ]]; do   # the trap has interrupted `wait`
        _HANDED_ON='' again=0
        wait "$_CHILD" || again=$?
        if ((again != 127)); then    # 127: `wait` was at its end already
            code=$again
        fi
    done
    _CHILD=
    if ((code)) || [[ -n $STOPPED ]]; then
        exit "$code"
    fi
}
