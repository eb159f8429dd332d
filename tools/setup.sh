#!/usr/bin/env bash
# Set up everything: a virtual environment, the pinned packages, and (as root) what ffcv compiles
# against. A second start compares one stamp and returns. Safe to interrupt: the stamp comes last.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${SHARDSIEVE_VENV:-.venv}
# Modules are compiled when they are imported: few of them ever are.
install=("$venv/bin/pip" install -q --no-compile -c constraints.txt)

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
        libturbojpeg0-dev dataset-fashion-mnist; } >"$venv/apt.log" 2>&1 || {
        tail -n 5 "$venv/apt.log" >&2
        die "no ffcv: apt-get failed as above; install libopencv-dev libturbojpeg0-dev by hand"
    }
}

# Make a wheel of ffcv in $venv/ffcv; its status is 1 where its libraries cannot be had.
compile_ffcv() {
    install_system_libraries || return 1
    say "compiling ffcv"
    rm -rf "$venv/ffcv"
    "$venv/bin/pip" wheel -q -c constraints.txt --no-deps -w "$venv/ffcv" ffcv \
        >"$venv/ffcv.log" 2>&1 || {
        tail -n 20 "$venv/ffcv.log" >&2
        die "no ffcv: it did not compile, see above and $venv/ffcv.log"
    }
}

install_ffcv() {
    # Its metadata asks for opencv-python, whose GUI libraries servers lack, and for what only its
    # own benchmarks import; what it needs is named instead. setuptools brings distutils.
    "${install[@]}" setuptools wheel numba opencv-python-headless \
        tqdm pytorch-pfn-extras ||
        die "no ffcv: pip could not install what it imports, see above"
    "${install[@]}" --no-deps "$venv"/ffcv/ffcv-*.whl
    "$venv/bin/python" -c 'import ffcv.fields, ffcv.loader, ffcv.transforms, ffcv.writer' ||
        die "ffcv is installed but cannot be imported, see above"
}

install_torchvision() {
    say "installing torchvision"
    # Without dependencies: torch stays the one that is there.
    "${install[@]}" --no-deps torchvision || {
        say "no torchvision: pip could not install it, see above"
        return
    }
    local stub
    stub=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    stub+=/torchvision_beside_cpu_torch.pth
    rm -f "$stub"
    if "$venv/bin/python" -c 'import torchvision' 2>/dev/null; then return; fi
    # PyPI has the GPU build alone. Beside a torch without GPU it lacks the operators that it
    # describes at import, and fails. Its transforms use none of them: the descriptions are left out.
    local left_out=torchvision._meta_registrations
    echo "import sys, types; sys.modules.setdefault('$left_out', types.ModuleType('$left_out'))" \
        >"$stub"
    "$venv/bin/python" -c 'import accelerate, torchvision.transforms.v2' || {
        # Installed and broken, it would break accelerate too.
        rm -f "$stub"
        "$venv/bin/pip" uninstall -q -y torchvision
        say "no torchvision: it cannot be imported beside this torch, see above"
    }
}

python=$(find_python)
stamp=$(cat pyproject.toml constraints.txt tools/setup.sh | sha256sum | cut -c1-16)-$("$python" -V)
if [ "$(cat "$venv/stamp" 2>/dev/null)" = "$stamp" ]; then exit 0; fi

say "virtual environment in $venv"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv" ||
    die "cannot make a virtual environment; on Debian: apt-get install python3-venv"
say "installing packages (a few minutes the first time)"
# ffcv is compiled beside the downloads. As a process group it ends with this script.
set -m
compile_ffcv </dev/null &
ffcv=$!
set +m
trap 'kill -- "-$ffcv" 2>/dev/null || true' EXIT
# torch is pinned: an open version pulls gigabytes of CUDA libraries.
"${install[@]}" torch==2.13.0 -e '.[dev,gnn,vision,track]'
install_torchvision
status=0
wait "$ffcv" || status=$?
case $status in
    0) install_ffcv ;;
    1) ;;  # said already
    *) exit "$status" ;;
esac
echo "$stamp" >"$venv/stamp"
