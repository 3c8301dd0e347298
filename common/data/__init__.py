"""From files to samples: which radiographs, how they are read and changed, latents instead of images, and a phantom."""
