"""The console of a site: its own pages on its own machine, about what was asked of it, what left it and what it allows."""
