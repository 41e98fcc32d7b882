"""Kernel sets: the same names and arguments for NumPy on the CPU and for CUDA."""
