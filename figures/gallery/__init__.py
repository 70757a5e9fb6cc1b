"""The README's pictures. ``python -m figures.gallery`` makes them anew, of made clips only."""
