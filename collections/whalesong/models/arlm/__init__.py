"""arlm: the auto-regressive text model, which writes from left to right."""
