#!/usr/bin/env bash
# The main job on real images: tools/demo.sh [OUTDIR] [--data digits|fashion-mnist|DIR]
# Needs no download: scikit-learn's digits unless told otherwise. A second start goes on.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
"$root/tools/setup.sh"
exec "$root/${SHARDSIEVE_VENV:-.venv}/bin/python" "$root/tools/demo.py" "$@"
