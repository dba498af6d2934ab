"""The codec language model: codes of an audio codec, arranged by a pattern, under conditions."""
