"""Ways to do the work of many virtual clients on one machine."""
