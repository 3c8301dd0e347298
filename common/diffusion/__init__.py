"""Diffusion and flow models: the forward process, what conditions a denoiser, and sampling."""
