"""From a corpus of videos to latent shards, on Ray Data."""
