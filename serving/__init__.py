"""From a checkpoint to an HTTP API, on Ray Serve."""
