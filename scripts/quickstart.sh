#!/usr/bin/env bash
# From a clean clone to a first picture: set up, then run the shipped models on the samples that ship with them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
make_environment

output=outputs/quickstart
rm -rf $output # of an earlier run, perhaps with other weights
run() { # arguments: bundle, then overrides
  local bundle=bundles/$1
  shift
  .venv/bin/python -m monai.bundle run --bundle_root "$bundle" \
    --config_file "$bundle/configs/inference.yaml" "$@"
}

echo "1 of 4: reconstructions of chest radiographs"
run cxr_autoencoder --output_dir $output/cxr_autoencoder
echo "2 of 4: chest radiographs without a source"
run cxr_dino_latent_diffusion --strategy prior --num_samples 8 --output_dir $output/cxr_prior
echo "3 of 4: variations of one"
run cxr_dino_latent_diffusion --strategy variation --limit 1 --num_per_source 8 --output_dir $output/cxr_variation
.venv/bin/python scripts/contact_sheet.py $output/generated.png \
  $output/cxr_prior $output/cxr_variation --columns 9
echo "4 of 4: masks of dental radiographs"
run dental_radiograph_segmentation --output_dir $output/dental

echo
echo "pictures:"
echo "  $output/generated.png   8 chest radiographs sampled without a source, then a sample and variations of it"
echo "  $output/cxr_autoencoder/contact_sheet.png   input, reconstruction, difference ×4, with the PSNR of each"
echo "  $output/dental/contact_sheet.png   synthetic dental radiographs, and what the segmenter finds on them"
