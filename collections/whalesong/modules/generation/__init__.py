"""Sampling and the decoding loop; they know codes and logits, not text or audio."""
