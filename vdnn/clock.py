"""The clock: what changes from step to step, as one small float64 array that kernels read.

A plan, or a captured CUDA graph, stays the same for every step because nothing of this is baked into it.
"""

STEP = 0  # optimizer steps done before this one
SAMPLE = 1  # index in the full batch of this (sub-)batch's first sample
SEED = 2  # of the run; below 2**53, so that float64 holds it exactly
LEARNING_RATE = 3
BIAS_1 = 4  # Adam: 1 - beta1 ** (STEP + 1)
BIAS_2 = 5  # Adam: 1 - beta2 ** (STEP + 1)
SIZE = 8
DTYPE = "float64"
