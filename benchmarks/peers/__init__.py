"""Peers on the same model, images, decode and cores: `python -m benchmarks.peers --help`, and README.md beside it."""
