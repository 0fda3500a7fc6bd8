"""The wire: bulk data as raw frames, everything else as protobuf; nothing else in the core knows either."""
