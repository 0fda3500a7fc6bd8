"""Sweeps: the search for settings of a job, with Optuna, in worker processes, resumable."""
