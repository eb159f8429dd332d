#!/usr/bin/env bash
# Set up, then format, lint, strict types and tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
unset PYTHONDONTWRITEBYTECODE  # every process that a test starts would compile torch anew
tools/setup.sh
bin=${SHARDSIEVE_VENV:-.venv}/bin
"$bin/ruff" format --check .
"$bin/ruff" check .
"$bin/mypy" &  # one process, for half a minute; its errors stand among the tests
types=$!
export OMP_NUM_THREADS=1
# Two processes: more would compete with the ranks that tests launch. Tests that share what is dear
# to make name a group, which one process runs.
status=0
"$bin/python" -m pytest -n 2 --dist loadgroup "$@" || status=$?
wait "$types" || { echo "test.sh: mypy found errors, see above" >&2; exit 1; }
exit "$status"
