# shellcheck shell=bash
# Find or make a Python environment with what the project needs. Sourced; sets PYTHON.
#   . tools/environment.sh [more requirement files]
# An active environment is completed, else .venv is made here. A torch that is there already, such as a build for a
# device, is kept.

_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

_has_torch() { "$1" -c "import torch" >/dev/null 2>&1; }

if [[ -n ${VIRTUAL_ENV:-} ]]; then
    PYTHON=$VIRTUAL_ENV/bin/python
elif [[ -n ${CONDA_PREFIX:-} && -x ${CONDA_PREFIX:-}/bin/python ]]; then
    PYTHON=$CONDA_PREFIX/bin/python
else
    _base=${PYTHON:-python3}
    if ! "$_base" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))'; then
        echo "error: $_base is $("$_base" --version 2>&1); need Python 3.11 to 3.13 (set PYTHON)" >&2
        exit 1
    fi
    if [[ ! -x $_root/.venv/bin/python ]]; then
        echo "making $_root/.venv"
        if _has_torch "$_base"; then
            "$_base" -m venv --system-site-packages "$_root/.venv"
        else
            "$_base" -m venv "$_root/.venv"
        fi
    fi
    PYTHON=$_root/.venv/bin/python
fi

_files=("$_root/requirements.txt" "$@")
_wanted=$(cat "${_files[@]}" | cksum)
_stamp=$("$PYTHON" -c 'import sys; print(sys.prefix)')/.mindspeed_mm_requirements
if [[ ! -f $_stamp ]] || ! grep -qxF "$_wanted" "$_stamp"; then
    echo "installing requirements into $("$PYTHON" -c 'import sys; print(sys.prefix)')"
    _install=$(mktemp)
    cat "${_files[@]}" >"$_install"
    if _has_torch "$PYTHON"; then
        sed -i '/^torch==/d' "$_install"
    fi
    # Python compiles a module when it is first imported; to compile all of them here takes longer than the rest.
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-compile -r "$_install"
    rm -f "$_install"
    echo "$_wanted" >>"$_stamp"
fi
export PYTHON
