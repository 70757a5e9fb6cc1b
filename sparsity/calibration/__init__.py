"""From recorded attention statistics to a profile whose promise holds: replay, search, bounds."""
