"""Each verb against a real server."""
