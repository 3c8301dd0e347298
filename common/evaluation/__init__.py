"""How good reconstructions and generated images are, measured on images that were held out."""
