"""What a privacy audit computes: estimates from canaries, bounds that hold with a stated confidence, and attacks."""
