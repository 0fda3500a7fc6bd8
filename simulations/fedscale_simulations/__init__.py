"""fedscale: the simulations room."""
