"""The gRPC services: thin translations between messages and the engine; every call passes the guard first."""
