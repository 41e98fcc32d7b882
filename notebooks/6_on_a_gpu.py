# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   requires: gpu
# ---

# %% [markdown]
# # The same on a GPU
#
# This notebook needs a GPU with CUDA, CuPy and cuDNN 9 (`pip install 'vdnn[cuda12x]'`). All times in it are
# **measured** unless a line says *simulated*.

# %%
import matplotlib.pyplot as plt

import vdnn
from vdnn.data import synthetic

net = vdnn.models.vgg11(batch=32)
images, labels = synthetic((3, 224, 224), 1000, 32, seed=0)

# %% [markdown]
# ## The same plan, another device
#
# The device runs the steps on three streams: compute, copies out, copies back. An event stands for every wait of the
# plan. One step is traced here; usually whole steps run as one CUDA graph.


# %%
def traced(policy, steps=4):
    trainer = vdnn.Trainer(net, device="cuda", policy=policy, seed=0)
    trainer.device.timed = True
    losses = [float(trainer.step(images, labels)) for _ in range(steps)]
    plan, trace = trainer.plan, trainer.trace
    trainer.close()
    return losses, plan, trace


kept_losses, kept, kept_trace = traced("keep_all")
moved_losses, moved, moved_trace = traced("vdnn_all")
print("the same bits:", kept_losses == moved_losses)
print(f"arena {kept.arena_bytes / 2**30:.2f} GiB and {moved.arena_bytes / 2**30:.2f} GiB")

# %%
moved_trace

# %% [markdown]
# ## How good was the prediction?
#
# $$ \text{error} = \frac{t_\text{simulated}}{t_\text{measured}} - 1 . $$

# %%
for plan, trace in ((kept, kept_trace), (moved, moved_trace)):
    simulated = vdnn.simulate(plan).step_seconds
    print(f"{plan.policy}: measured {1e3 * trace.step_seconds:.1f} ms, simulated {1e3 * simulated:.1f} ms")

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 4), sharey=True, layout="constrained")
for side, trace in zip(axes, (kept_trace, moved_trace)):
    times, roles = trace.timeline
    side.stackplot([1e3 * t for t in times], [[b / 2**30 for b in roles[r]] for r in roles], labels=list(roles))
    side.set_xlabel(f"ms ({trace.kind})")
    side.set_title(trace.plan.policy, loc="left")
axes[0].set_ylabel("GiB on the device")
axes[0].legend(fontsize=8)
plt.show()

# %% [markdown]
# ## Questions
#
# 1. Which share of the copies was hidden? Compare it with the simulation.
# 2. Repeat with `math="tf32"`. Compute gets faster and the link does not: what happens to that share?
# 3. `make gpu-bench` measures the link of this machine. Put its rates into `vdnn.roofline` and simulate again.
