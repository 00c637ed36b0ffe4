"""What a run leaves on disk: columns, immutable shards, fingerprints."""
