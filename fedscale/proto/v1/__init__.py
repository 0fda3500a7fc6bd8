"""Messages and services of version 1."""
