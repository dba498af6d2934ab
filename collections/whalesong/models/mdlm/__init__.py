"""`mdlm`, a masked diffusion language model (arXiv 2406.07524): it unmasks a whole text bit by bit."""
