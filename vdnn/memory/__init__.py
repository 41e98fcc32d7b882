"""The memory manager: policies decide, passes plan, the verifier proves, devices run, the simulator predicts."""
