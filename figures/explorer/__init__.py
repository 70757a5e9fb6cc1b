"""The explorer: click on a pixel and see what it attends to, in a notebook or in one offline page."""
