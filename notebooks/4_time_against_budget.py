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
# # Step time against budget: the paper's trade-off
#
# vDNN (Rhu et al., MICRO 2016) trains networks that do not fit, by moving feature maps to the host behind compute. Its
# question: how much memory does that save, and how much time does it take? We ask it of VGG-16.
#
# All times are **simulated** for the paper's Titan X, with the algorithms of cuDNN 4 that it measured; bytes are exact.

# %%
import matplotlib.pyplot as plt

import vdnn

net = vdnn.models.vgg16(batch=64)
options = {"hardware": "titan-x", "kernels": "cudnn4", "optimizer": "sgd"}

# %% [markdown]
# ## Two things to choose
#
# 1. **What leaves.** `vdnn_all` offloads the input of every layer of feature extraction, `vdnn_conv` of convolutions
#    only, `baseline` nothing.
# 2. **Which algorithms.** A convolution has several. The fast ones need *workspace*: (p) is the fastest of each, (m)
#    the one with least workspace.
#
# Performance is measured against an oracle with memory without limit and no copies:
#
# $$ \text{performance} = \frac{t_\text{oracle}}{t_\text{step}} \le 1 . $$
#
# First by the paper's own rules, `rules="paper"`: after every layer that copied, compute waits for the copy.

# %%
bars = [(policy, kind) for policy in ("vdnn_all", "vdnn_conv", "baseline") for kind in ("memory", "performance")]
figures = {}
for policy, kind in bars:
    (figures[policy, kind],) = vdnn.compare(net, policy, "1TiB", algorithms=kind, rules="paper", **options)

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
names = [f"{policy} ({kind[0]})" for policy, kind in bars]
left.bar(names, [figures[bar]["peak_bytes"] / 2**30 for bar in bars], color="#3b8bc2")
left.set_ylabel("peak, GiB (exact)")
right.bar(names, [figures[b]["oracle_seconds"] / figures[b]["step_seconds"] for b in bars], color="#f2a541")
right.set_ylabel("performance (simulated)")
for axes in (left, right):
    axes.tick_params(axis="x", rotation=40)
plt.show()

# %% [markdown]
# Offloading takes the least memory. It is slowest where copies take longer than the layer that should hide them, which
# under these rules is any layer with
#
# $$ \frac{4 N C H W}{B} > t_\text{layer} . $$
#
# ## The front
#
# The paper's `vdnn_dyn` tries these in turn and takes the first that fits. Newer planners decide tensor by tensor. Each
# line shows what a policy makes of a budget, by vdnn's own rules now: compute waits only where it needs the bytes.

# %%
policies = ["vdnn_all", "vdnn_conv", "vdnn_dyn", "checkpoint", "capuchin", "pofo"]
shares = (5, 15, 30, 50, 75, 100)
found = vdnn.compare(net, policies, [f"floor+{share}%" for share in shares], **options)
figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
for number, policy in enumerate(policies):
    rows = [row for row in found[number :: len(policies)] if row["fits"]]
    axes.plot([r["budget_bytes"] / 2**30 for r in rows], [1e3 * r["step_seconds"] for r in rows], "o-", label=policy)
axes.axhline(1e3 * found[0]["oracle_seconds"], color="k", ls=":", label="oracle")
axes.axvline(found[0]["floor_bytes"] / 2**30, color="grey", ls="--", label="floor")
axes.set_xlabel("budget, GiB")
axes.set_ylabel("step, ms (simulated)")
axes.legend(fontsize=8)
plt.show()

# %% [markdown]
# The *floor* is what no plan can undercut: the weights and the largest single operation.
#
# ## The largest batch
#
# Memory that is saved can be spent on a larger batch.

# %%
vdnn.fit("vgg16", budget="12GiB", policies=["baseline", "keep_all", "vdnn_all"], **options)

# %% [markdown]
# ## Questions
#
# 1. Why does (m) take less memory than (p) even where nothing is moved?
# 2. `vdnn_dyn` may be slower with *more* memory than another policy with less. Find such a budget in the picture.
# 3. `baseline` holds everything for the whole step; `keep_all` frees what nobody needs any more. How much is that alone
#    worth?
# 4. Repeat the front for `vdnn.models.resnet50`. Which policy gains, which loses, and why?
