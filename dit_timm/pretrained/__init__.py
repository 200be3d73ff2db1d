"""Weights that prove themselves: checked loading, golden outputs, sources on disks and on the Hub."""
