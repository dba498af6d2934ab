"""Duplex speech to speech, codes from a speech decoder behind the LLM."""
