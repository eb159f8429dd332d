#!/usr/bin/env bash
# Set up, then format, lint, strict types and tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tools/setup.sh
bin=${SHARDSIEVE_VENV:-.venv}/bin
"$bin/ruff" format --check .
"$bin/ruff" check .
"$bin/mypy"
export OMP_NUM_THREADS=1
# Two processes: more would compete with the ranks that tests launch.
exec "$bin/python" -m pytest -n 2 "$@"
