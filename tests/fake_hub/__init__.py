"""A Hugging Face Hub on this machine, for tests with the real client."""
