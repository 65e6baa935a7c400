#!/usr/bin/env bash
# Makes the virtual environment: setup.sh FOLDER. Needs Python 3.11 or newer and a C++ compiler, and says so.
set -euo pipefail
venv=$1

fail() {
    echo "error: $1" >&2
    exit 2
}

python=""
for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3; do
    [ -n "$candidate" ] || continue
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
[ -n "$python" ] || fail "no Python 3.11 to 3.13 with venv found; install one (Debian: python3-venv) or set PYTHON=/path/to/python"
command -v "${CXX:-g++}" >/dev/null || command -v clang++ >/dev/null ||
    fail "no C++ compiler found; install one (Debian: g++) or set CXX: DeepSpeed compiles its collectives with it"

echo "setup: virtual environment in $venv with $("$python" --version)"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
# Python compiles what is imported when it is imported, a fourth of what pip would.
pip() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "$@"; }

# The pip that comes with Python 3.11 takes twice as long as this one.
pip -c constraints.txt --upgrade pip

# torch goes first and alone: resolved among the others, an open range may bring another build of it.
echo "setup: torch"
pip -c constraints.txt torch
echo "setup: everything else (some minutes)"
# Ignored: setuptools warns that folders here may hide the packages. They are the packages.
PYTHONWARNINGS=ignore pip -c constraints.txt -e '.[dev]'

# Every DeepSpeed process on CPU loads this operator; two that build it at once wait for each other.
echo "setup: DeepSpeed's shared-memory operator"
PATH="$PWD/$venv/bin:$PATH" "$venv/bin/python" -c \
    'from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder; ShareMemCommBuilder().load(verbose=False)' \
    >"$venv/operator.log" 2>&1 || fail "DeepSpeed's operator did not compile; see $venv/operator.log"
echo "setup: done"
