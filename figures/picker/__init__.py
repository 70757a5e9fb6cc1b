"""Pointing at objects: prompts made by clicks, boxes and a brush, in a notebook or in a browser."""
