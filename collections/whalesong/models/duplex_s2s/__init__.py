"""Duplex speech to speech, codes from heads on the LLM."""
