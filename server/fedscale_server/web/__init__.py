"""The dashboard: what the coordinator knows, in a browser; FastAPI and all that is heavy are loaded behind the open port."""
