"""What a role learns from, and how a weight moves: objectives, optimisers, the replay buffer."""
