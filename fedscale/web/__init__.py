"""What the coordinator's dashboard and the node's console have in common: the gate in front of them, one-time links, pages, and a quiet server."""
