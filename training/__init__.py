"""From latent shards to a checkpoint, on Ray Train and DeepSpeed."""
