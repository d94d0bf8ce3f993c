"""METRO in PyTorch: network, bodies, data, losses and the training loop (`python -m training`)."""
