#!/usr/bin/env bash
# Set up MONAI Label's own environment, then run its tests. `bash scripts/run_label_tests.sh -k server` passes on to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/label_environment.sh
make_label_environment

exec "$label_python" -m pytest tests/label "$@"
