"""The worker's side of Lockstep: the mathematics, the data shards, the Ray actor and the fleet."""
