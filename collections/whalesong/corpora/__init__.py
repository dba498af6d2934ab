"""Small corpora made on the spot: real synthesized speech, written as lhotse shar."""
