"""Codecs: audio to discrete codes and back, always frozen and in fp32."""
