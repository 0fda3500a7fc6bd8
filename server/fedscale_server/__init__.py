"""fedscale: the server room."""
