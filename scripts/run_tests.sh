#!/usr/bin/env bash
# Set up what the tests need, then lint, types and tests. `bash scripts/run_tests.sh -k reader` passes on to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
make_environment dev

.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# Two at a time, a thread each; the tests of one file stay together, for they share what is dear to make.
OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n "${TEST_WORKERS:-2}" --dist loadfile "$@"
