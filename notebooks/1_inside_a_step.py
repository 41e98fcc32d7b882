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
# ---

# %% [markdown]
# # One training step, seen from the inside
#
# A convolutional network keeps the outputs of its layers, its *feature maps*, from forward to backward. They fill the
# device. Here we look at one training step: what is in memory when, why it must be there, and what changes when it
# may leave for a while.
#
# Times in the first parts are **simulated**, from published rates of a GPU (a Titan X): no GPU is needed. Bytes are
# exact. In the last part a step really runs on this CPU, and times are **measured**.

# %%
import matplotlib.pyplot as plt

import vdnn
from vdnn.data import digits
from vdnn.plot import COLOURS

net = vdnn.models.vgg16(batch=64)
net

# %% [markdown]
# ## How large is a feature map?
#
# A map of $N$ images, $C$ channels and $H \times W$ pixels in single precision takes
#
# $$ 4 \cdot N \cdot C \cdot H \cdot W \ \text{bytes.} $$
#
# The first convolution of VGG-16 has 64 channels of $224 \times 224$ pixels.

# %%
y = net["conv1_1"].y
N, C, H, W = y.shape
print(y, y.nbytes == 4 * N * C * H * W, f"{y.nbytes / 2**20:.0f} MiB")

# %% [markdown]
# ## Why must it stay?
#
# Forward computes $y = x * w$. Backward is given $\partial L / \partial y$ and needs
#
# $$ \frac{\partial L}{\partial w} = x \star \frac{\partial L}{\partial y}, \qquad
#    \frac{\partial L}{\partial x} = \frac{\partial L}{\partial y} * \tilde w . $$
#
# The first formula reads $x$, which is the output of the layer before. So every map waits for its backward pass: the
# first ones longest of all.
#
# ## A plan in which everything stays
#
# A step is planned before it runs: a list of steps with an address for every tensor. `keep_all` moves nothing.

# %%
kept = vdnn.plan(net, "keep_all")
print(str(kept).splitlines()[60], str(kept).splitlines()[61], sep="\n")
vdnn.simulate(kept)

# %% [markdown]
# The memory of the step at time $t$ is what is live then. The peak decides whether the step fits:
#
# $$ \text{peak} = \max_t \sum_{\text{tensors live at } t} \text{bytes}. $$


# %%
def draw(axes, trace, title):
    times, roles = trace.timeline
    milliseconds, shown = [1e3 * t for t in times], [role for role in COLOURS if role in roles]
    amounts, colours = [[b / 2**30 for b in roles[role]] for role in shown], [COLOURS[role] for role in shown]
    axes.stackplot(milliseconds, amounts, labels=shown, colors=colours, step="post")
    axes.set_title(f"{title}: peak {trace.plan.peak_bytes / 2**30:.2f} GiB", loc="left")
    axes.set_xlabel(f"ms ({trace.kind})")


moved = vdnn.plan(net, "vdnn_all")
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), sharey=True, layout="constrained")
draw(left, vdnn.simulate(kept), "keep_all")
draw(right, vdnn.simulate(moved), "vdnn_all")
left.set_ylabel("GiB on the device")
left.legend(fontsize=8, loc="lower center")
plt.show()

# %% [markdown]
# On the left memory climbs through forward and falls through backward. On the right every map leaves for the host as
# soon as forward is done with it, and comes back just before backward needs it. The mountain has become a valley, and
# the step is longer. The table says which copies the step waited for.

# %%
vdnn.simulate(moved)

# %% [markdown]
# ## One tensor

# %%
print(moved.explain(replan=["relu1_1.y"]).about("relu1_1.y"))

# %% [markdown]
# ## The same, running
#
# Small networks run on this CPU, by the same kind of plan. `walk` yields every step of the plan as it is issued.

# %%
small = vdnn.models.digits_vgg(batch=32)
trainer = vdnn.Trainer(small, policy="vdnn_all", seed=0)
images, labels = (part[:32] for part in digits()[:2])
trainer.step(images, labels)
in_use = [trainer.device.bytes_in_use / 2**20 for _ in vdnn.walk(trainer.plan, trainer.device)]
print(f"predicted peak {trainer.plan.peak_bytes} bytes, measured {trainer.measured_peak_bytes}")
figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
axes.plot(in_use, drawstyle="steps-post")
axes.set_xlabel("step of the plan")
axes.set_ylabel("MiB in use, by the plan")
plt.show()

# %%
trainer.trace  # what the step before took: measured

# %% [markdown]
# ## Questions
#
# 1. Which two tensors hold most bytes at the peak of `keep_all`? Find them with `kept.table()`.
# 2. Double the batch. Which parts of `kept.breakdown` double, and which stay?
# 3. The last maps are kept even by `vdnn_all`. Why would it be foolish to move them?
# 4. In the explanation above: would dropping that tensor, and computing it again, be better than moving it?

# %%
trainer.close()
