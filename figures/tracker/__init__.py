"""Tracking in a notebook: a player that fills meanwhile, and objects that are corrected where they go wrong."""
