#!/usr/bin/env bash
# Set up MONAI Label's own environment, then run its tests. `bash scripts/run_label_tests.sh -k server` passes on to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/label_environment.sh
make_label_environment

# Two at a time, a thread each: servers and archives that start are waited for, so one alone takes nearly twice as long.
OMP_NUM_THREADS=1 exec "$label_python" -m pytest tests/label -n "${TEST_WORKERS:-2}" --dist loadfile "$@"
