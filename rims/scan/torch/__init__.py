"""The recurrent part of a sequence in PyTorch: on any device, in any type."""
