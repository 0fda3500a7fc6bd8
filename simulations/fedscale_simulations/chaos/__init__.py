"""Chaos: faults inflicted on a federation of real processes, and an oracle that sees what they cost."""
