"""The stages of a run, one module each: load a model, take the rows of a shard, give the rows of the next."""
