"""Networks of the bundles, MONAI core's where it has them, and those that only measure."""
