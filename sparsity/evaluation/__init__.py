"""Quality and speed: evaluation against annotations, benchmarks against stock sam2, and many clips at once."""
