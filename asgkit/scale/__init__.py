"""Many processes: the team that shares a run, its shards, devices, and how a run is started."""
