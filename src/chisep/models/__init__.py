"""Networks: pure `torch.nn` modules on tensors in ppm, without training code."""
