#!/usr/bin/env bash
# Set up everything: a virtual environment, the pinned packages, and (as root) what ffcv compiles
# against. A second start compares one stamp and returns. Safe to interrupt: the stamp comes last.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${SHARDSIEVE_VENV:-.venv}

say() { echo "setup: $*"; }
die() { echo "setup: $*" >&2; exit 2; }

find_python() {
    for name in python3.13 python3.12 python3.11 python3; do
        if command -v "$name" >/dev/null &&
            "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    die "Python 3.11 or newer is needed; on Debian: apt-get install python3 python3-venv"
}

install_system_libraries() {
    if command -v pkg-config >/dev/null && pkg-config --exists opencv4 libturbojpeg; then return; fi
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        say "no ffcv: its libraries need root; run" \
            "'apt-get install g++ pkg-config libopencv-dev libturbojpeg0-dev' and start again"
        return 1
    fi
    say "installing the libraries that ffcv compiles against (apt-get)"
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update -qq && apt-get install -y -qq g++ pkg-config libopencv-dev \
        libturbojpeg0-dev dataset-fashion-mnist; } >/dev/null 2>&1 ||
        { say "no ffcv: apt-get failed; install libopencv-dev libturbojpeg0-dev by hand"; return 1; }
}

install_ffcv() {
    install_system_libraries || return 0
    say "compiling ffcv"
    # Its metadata asks for packages it does not need here; what it imports is named instead.
    "$venv/bin/pip" install -q -c constraints.txt setuptools wheel numba opencv-python-headless \
        tqdm psutil terminaltables pytorch-pfn-extras fastargs assertpy 2>/dev/null || true
    "$venv/bin/pip" install -q --no-deps ffcv==1.0.2 >"$venv/ffcv.log" 2>&1 ||
        say "no ffcv: it did not compile, see $venv/ffcv.log"
}

python=$(find_python)
stamp=$(cat pyproject.toml constraints.txt tools/setup.sh | sha256sum | cut -c1-16)-$("$python" -V)
if [ "$(cat "$venv/stamp" 2>/dev/null)" = "$stamp" ]; then exit 0; fi

say "virtual environment in $venv"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv" ||
    die "cannot make a virtual environment; on Debian: apt-get install python3-venv"
say "installing packages (a few minutes the first time)"
# torch first and pinned: an open version pulls gigabytes of CUDA libraries.
"$venv/bin/pip" install -q -c constraints.txt torch==2.13.0
"$venv/bin/pip" install -q -c constraints.txt -e '.[dev,gnn,vision,track]'
install_ffcv
echo "$stamp" >"$venv/stamp"
