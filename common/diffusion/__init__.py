"""Diffusion and flow models: the forward process, and sampling of tokens, latents and images."""
