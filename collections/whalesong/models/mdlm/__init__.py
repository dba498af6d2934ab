"""mdlm: the masked diffusion text model (arXiv 2406.07524), which unmasks a text bit by bit."""
