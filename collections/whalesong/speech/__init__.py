"""What families with perception and a pretrained LLM share: loading, rebuilding, names."""
