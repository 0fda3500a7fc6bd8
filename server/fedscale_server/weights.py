"""A run's model in a file that every framework reads."""

from __future__ import annotations

from safetensors.numpy import save

from fedscale.vector import Schema


def safetensors_of(run: str, digest: str, schema: Schema, content: bytes) -> bytes:
    """A model as safetensors.

    Args:
        run: whose it is; stands in the file's header.
        digest: SHA-256 of ``content``; stands there too.
        schema: names, shapes and types of its tensors.
        content: the flat vector, little-endian float32.
    """
    arrays = {name: values.copy() for name, values in schema.unpack(schema.read(content)).items()}
    return save(arrays, {"run": run, "digest": digest, "format": "pt"})
