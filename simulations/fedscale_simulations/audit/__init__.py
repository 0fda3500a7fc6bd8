"""The privacy audit: canaries and attacks sent through clipping, ring, masks and noise as they are deployed."""
