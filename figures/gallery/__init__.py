"""The pictures of the README and the docs. ``python -m figures.gallery`` makes them anew, of made clips only."""
