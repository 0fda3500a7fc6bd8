"""What the server remembers: rows in a database, bytes in blobs."""
