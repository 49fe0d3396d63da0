"""What every floor above shares: errors, spaces, rollout containers and the agent protocol."""
