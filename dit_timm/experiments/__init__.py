"""The paper's experiments with single neurons and trained networks, each a command of minutes: scripts/experiments."""
