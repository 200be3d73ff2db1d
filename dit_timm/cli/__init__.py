"""The commands: dit-train, dit-validate, dit-predict and dit-sweep, and how all commands print."""
