"""A small SAM 2 that is really trained: its weights, configuration, card and calibrated profile; no code."""
