"""fedscale: the client room."""
