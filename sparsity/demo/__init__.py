"""A small SAM 2 that is really trained, the clips it is shown on, and how it was made."""
