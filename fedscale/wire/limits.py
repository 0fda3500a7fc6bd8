"""Limits and options of every gRPC channel and server: what a peer may send at all."""

from __future__ import annotations

# A frame costs both sides about as much as 100 KiB of its bytes, however short it is; with longer ones the heap of a server with many nodes frays.
# What fits into a short one is sent without asking first.
FRAME, SHORT = 1 << 19, 1 << 18
LOOKAHEAD = 1 << 18
MESSAGE = 4 << 20
BUNDLE = 64 << 20
# The content of a led run's message, and a reply to one.
LETTER = 1 << 30
# How long one may take, and the last round that there can be.
LETTER_SECONDS, ROUNDS = 30 * 86_400.0, 1_000_000
# What its leader makes of them at last, as JSON, and the name of a metric.
METRICS, METRIC_NAME = 3 << 20, 200
# A longer message of secure aggregation comes in parts; with all its parts it is the keys of 200,000 nodes at most.
TOLD_PART, TOLD = 1 << 20, 256 << 20
CONNECTIONS = 16_384
HEARTBEAT_SECONDS = 1.0
SILENCE_SECONDS = 4.0

# Bandwidth probing lets a slow reader pile up megabytes per connection; a fixed window does not.
OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", LOOKAHEAD),
    ("grpc.max_receive_message_length", MESSAGE),
    ("grpc.max_send_message_length", MESSAGE),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
)
# A run's record is JSON in ASCII and comes in parts of so many characters.
RECORD_PART = 1 << 20
# The schema of a first model travels as metadata; only members get as far as sending any.
METADATA = 8 << 20
SERVER_OPTIONS = (
    *OPTIONS,
    ("grpc.max_metadata_size", METADATA),
    ("grpc.absolute_max_metadata_size", METADATA),
    ("grpc.so_reuseport", 0),
    # Whoever opens connections without using them gets no further than this.
    ("grpc.max_concurrent_streams", 128),
    ("grpc.max_allowed_incoming_connections", CONNECTIONS),
    ("grpc.server_handshake_timeout_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)
CHANNEL_OPTIONS = (*OPTIONS, ("grpc.max_reconnect_backoff_ms", 5_000), ("grpc.initial_reconnect_backoff_ms", 100))
