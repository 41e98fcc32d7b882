"""exchange: models from outside: weights of PyTorch's, networks of ONNX.  Nothing that a file holds is ever run."""
