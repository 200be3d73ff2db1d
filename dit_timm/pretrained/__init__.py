"""Pretrained weights: loading with verified checksums, golden outputs, sources on disk and on the Hub."""
