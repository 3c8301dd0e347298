#!/usr/bin/env bash
# From a clean clone to a first picture: set up, then run the shipped models on the samples that ship with them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
make_environment

bundle=bundles/cxr_autoencoder
output=outputs/quickstart/cxr_autoencoder
.venv/bin/python -W ignore::UserWarning -m monai.bundle run --bundle_root "$bundle" \
  --config_file "$bundle/configs/inference.yaml" --output_dir "$output"

echo
echo "pictures:"
echo "  $output/contact_sheet.png   input, reconstruction, difference ×4, with the PSNR of each"
echo "  $output/reconstructions.csv"
