"""Octets to messages and back; pure functions and bounded buffers, nothing else."""
