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
# # What if the link were faster?
#
# Whether it pays to move a tensor or to compute it again depends on two rates: bytes per second of the link, and
# arithmetic per second of the GPU. Both have changed since 2016. A simulator can turn the knobs one at a time.
#
# All times are **simulated** from published rates; bytes are exact.

# %%
import matplotlib.pyplot as plt

import vdnn

net = vdnn.models.vgg16(batch=64)
policies = ("vdnn_all", "vdnn_conv", "checkpoint")

# %% [markdown]
# ## One knob
#
# A copy hides behind an operation if
#
# $$ \frac{b}{B} \le t_\text{op} \quad\Longleftrightarrow\quad B \ge \frac{b}{t_\text{op}} . $$
#
# For a convolution of $C$ to $K$ channels with $3 \times 3$ filters, $b = 4NCHW$ and $t = 2 \cdot 9 \cdot NCKHW / F$
# with $F$ operations per second. Images, rows and columns cancel:
#
# $$ B \ge \frac{4 F}{18 K} . $$
#
# So a deep convolution hides its copy over a slow link, and a faster GPU asks for a faster link.

# %%
titan = vdnn.roofline("titan-x")
for K in (64, 128, 256, 512):
    print(
        f"K = {K}: {4 * titan.flops_per_second / (18 * K) / 1e9:.1f} GB/s would do (ours: "
        f"{titan.offload_bytes_per_second / 1e9:.1f})"
    )

# %%
rates = [2e9, 4e9, 8e9, 16e9, 32e9, 64e9, 128e9]
ratios = {policy: [] for policy in policies}
for rate in rates:
    cost = vdnn.roofline("titan-x", offload_bytes_per_second=rate, prefetch_bytes_per_second=rate)
    for figures in vdnn.compare(net, policies, "1TiB", cost=cost):
        ratios[figures["policy"]].append(figures["step_seconds"] / figures["oracle_seconds"])

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for policy in policies:
    axes.semilogx([rate / 1e9 for rate in rates], ratios[policy], "o-", label=policy)
axes.axvline(titan.offload_bytes_per_second / 1e9, color="grey", ls="--", label="Titan X, PCIe 3")
axes.set_xlabel("link, GB/s each way")
axes.set_ylabel("step / oracle (simulated)")
axes.legend()
plt.show()

# %% [markdown]
# Offloading gains with every doubling until it is hidden. `checkpoint` copies nothing, so that the link is all the same
# to it: it pays about a forward pass more.
#
# ## Machines since
#
# Arithmetic has grown faster than most links.

# %%
machines = ("titan-x", "p100", "v100", "a100", "h100-sxm", "gh200")
figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
width = 0.26
for number, policy in enumerate(policies):
    steps = [vdnn.compare(net, policy, "1TiB", hardware=machine)[0] for machine in machines]
    ratio = [figures["step_seconds"] / figures["oracle_seconds"] for figures in steps]
    axes.bar([k + (number - 1) * width for k in range(len(machines))], ratio, width, label=policy)
labels = []
for machine in machines:
    rates = vdnn.roofline(machine)
    labels.append(f"{machine}\n{rates.flops_per_second / rates.offload_bytes_per_second:.0f} flop/byte")
axes.set_xticks(range(len(machines)), labels)
axes.axhline(1, color="k", lw=0.8)
axes.set_ylabel("step / oracle (simulated)")
axes.legend()
plt.show()

# %% [markdown]
# Below each machine stands how many operations it does while one byte crosses the link. Where that number is high,
# computing again beats moving; on a GH200 the link is part of the chip package and moving wins again.
#
# ## Questions
#
# 1. Which convolutions of VGG-16 cannot hide their copies over 12.8 GB/s? Use the formula, then `plan.explain()`.
# 2. Let only one direction be fast: `offload_bytes_per_second=64e9` alone. Which half of the step profits?
# 3. Let both directions share one link: `vdnn.simulate(plan, cost, vdnn.Contention(duplex=False))`. What does it cost?
# 4. Take `resnet50`. Why does it ask for a faster link than VGG-16?
