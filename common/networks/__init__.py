"""Networks of the bundles, and the weights of others that are measured with: MONAI core's networks where it has them."""
