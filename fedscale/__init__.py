"""fedscale: federated learning where one plan simulates and deploys."""
