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
# # Write a policy and put it in the arena
#
# A policy decides what happens to every tensor between forward and backward: it is *kept*, *offloaded* to the host and
# brought back, or *dropped* and computed again. A policy is a function. It names what it wants to know and returns
# fates; vdnn makes the plan, proves it safe and simulates it.
#
# All times here are **simulated** for a Titan X; bytes are exact.

# %%
from bisect import bisect_left

import matplotlib.pyplot as plt

import vdnn

net = vdnn.models.googlenet(batch=64)
cost = vdnn.roofline("titan-x")
kept = vdnn.plan(net, "keep_all", cost=cost)
print(f"keep_all: {kept.arena_bytes / 2**30:.2f} GiB; no plan can do with less than {kept.floor_bytes / 2**30:.2f} GiB")

# %% [markdown]
# ## Idea 1: the largest first
#
# Offload the largest tensors until the step fits. How many is found by bisection, since offloading more
# hardly ever needs more memory: eight plans instead of a hundred.


# %%
def offload_first(order, tape, budget):
    def fits(count):
        return vdnn.plan(tape, dict.fromkeys(order[:count], vdnn.OFFLOAD)).arena_bytes <= budget

    count = bisect_left(range(len(order)), True, key=fits)
    return dict.fromkeys(order[:count], vdnn.OFFLOAD)


def largest_first(tape, budget):
    return offload_first(sorted(tape.saved, key=lambda t: -t.nbytes), tape, budget)


vdnn.plan(net, largest_first, budget="floor+50%", cost=cost).explain(replan=3).sorted("stall")

# %% [markdown]
# ## Idea 2: those that are away longest
#
# A copy of $b$ bytes takes $b / B$ seconds over a link of $B$ bytes per second. It costs nothing if compute has that
# much to do meanwhile:
#
# $$ \frac{b}{B_\text{out}} + \frac{b}{B_\text{back}} \le t_\text{needed again} - t_\text{last used} . $$
#
# The first tensors of forward are the last of backward, so they have most time. Take first what has most time to
# spare.


# %%
def most_time_first(tape, budget, cost, algorithms):
    clock, last, needed = 0.0, {}, {}
    for op, reads in zip(tape.ops, tape.reads, strict=True):
        for buffer in reads:
            if op.is_backward:
                needed.setdefault(buffer, clock)
            else:
                last[buffer] = clock
        clock += cost.op_seconds(tape, op, algorithms[op.name])

    def spare(tensor):
        buffer = tape.buffer_of[tensor.name]
        copies = sum(cost.copy_seconds(tensor.nbytes, way) for way in ("offload", "prefetch"))
        return needed[buffer] - last.get(buffer, 0.0) - copies

    return offload_first(sorted(tape.saved, key=spare, reverse=True), tape, budget)


# %% [markdown]
# ## The arena
#
# All policies plan the same step, with the same times, for the same budgets. A budget of floor + 25 % lies a quarter of
# the way from what no plan can undercut to what keeping everything takes.

# %%
policies = [largest_first, most_time_first, "vdnn_conv", "vdnn_dyn", "checkpoint", "capuchin"]
shares = [25, 50, 75]
found = vdnn.compare(net, policies, [f"floor+{share}%" for share in shares], cost=cost)
found

# %%
figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
for number, policy in enumerate(policies):
    rows = [found[k * len(policies) + number] for k in range(len(shares))]
    inside = [(share, row["step_seconds"] / row["oracle_seconds"]) for share, row in zip(shares, rows) if row["fits"]]
    label = policy if isinstance(policy, str) else policy.__name__
    axes.plot(*zip(*inside), "o-", label=label) if inside else None
axes.set_xlabel("budget: floor + so many % of the way to keep_all")
axes.set_ylabel("step / oracle (simulated)")
axes.axhline(1, color="grey", lw=0.8)
axes.legend(fontsize=8)
plt.show()

# %% [markdown]
# The *oracle* is the step with unlimited memory and no copies. A point is missing where the policy does not fit.
#
# ## Give it a name
#
# In the `pyproject.toml` of a package of your own:
#
# ```toml
# [project.entry-points."vdnn.policies"]
# most_time_first = "my_package:most_time_first"
# ```
#
# Once it is installed, `vdnn plan googlenet --policy most_time_first` works, and `vdnn policies` lists it.
#
# ## Questions
#
# 1. Which of the two ideas is better with little room, and why? Look at the stalls of each.
# 2. Both policies only offload. Where does `checkpoint`, which only drops, beat them?
# 3. Write one that drops what is cheap to compute again (ReLU, pooling) and offloads the rest.
# 4. How far is your best from `vdnn.searching(seconds=5)`, which looks for the fastest plan?
