"""Training data that is made: seeded pictures of people with exact labels, cached in shards."""
