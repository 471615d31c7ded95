"""What other libraries need to know of the layers: torch.fx, opacus."""
