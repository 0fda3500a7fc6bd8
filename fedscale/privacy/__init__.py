"""Differential privacy: what is asked for, the noise that gives it, and the accounting of what was spent."""
