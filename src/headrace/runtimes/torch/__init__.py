"""Runtimes of PyTorch's files: TorchScript and exported programs."""
