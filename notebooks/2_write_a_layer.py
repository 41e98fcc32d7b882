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
# # Write a layer and check it
#
# A layer is two functions, `forward` and `backward`. The names of their arguments say which arrays they need. What
# backward does not name may leave the memory. So how you write the derivative decides what the network must hold.
#
# Our layer is *squareplus*, a smooth ReLU:
#
# $$ y = \frac{x + \sqrt{x^2 + b}}{2}, \qquad b > 0 . $$

# %%
import matplotlib.pyplot as plt
import numpy as np

import vdnn
from vdnn.data import digits
from vdnn.layers import BatchNorm2d, Conv2d, Flatten, Linear, MaxPool2d, SoftmaxCrossEntropy

x = np.linspace(-4, 4, 200)
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
for b in (0.1, 1, 4):
    axes.plot(x, (x + np.sqrt(x * x + b)) / 2, label=f"b = {b}")
axes.plot(x, np.maximum(x, 0), "k:", label="ReLU")
axes.set_xlabel("x")
axes.set_ylabel("y")
axes.legend()
plt.show()

# %% [markdown]
# ## First try: the derivative from $x$
#
# $$ \frac{dy}{dx} = \frac{1}{2}\left(1 + \frac{x}{\sqrt{x^2 + b}}\right), \qquad
#    \frac{\partial L}{\partial x} = \frac{\partial L}{\partial y} \cdot \frac{dy}{dx} . $$
#
# Layers never allocate: results are written to arrays that are given. `xp` is NumPy here, and CuPy on a GPU.


# %%
class SquareplusFromX(vdnn.Layer):
    """y = (x + sqrt(x^2 + b)) / 2, with backward from x."""

    def __init__(self, b=1.0):
        self.b = b

    def forward(self, xp, x, y):
        xp.multiply(x, x, out=y)
        xp.add(y, self.b, out=y)
        xp.sqrt(y, out=y)
        xp.add(y, x, out=y)
        xp.multiply(y, 0.5, out=y)

    def backward(self, xp, x, dy, dx):
        xp.multiply(x, x, out=dx)
        xp.add(dx, self.b, out=dx)
        xp.sqrt(dx, out=dx)
        xp.divide(x, dx, out=dx)
        xp.add(dx, 1, out=dx)
        xp.multiply(dx, 0.5, out=dx)
        xp.multiply(dx, dy, out=dx)


vdnn.check_layer(SquareplusFromX(), (2, 3, 4, 4))
print("it passes")

# %% [markdown]
# `check_layer` compares the gradient with a difference along a random direction $v$, in double precision:
#
# $$ \Big\langle \frac{\partial L}{\partial x}, v \Big\rangle \approx \frac{L(x + h v) - L(x - h v)}{2h} . $$
#
# It also checks that forward run twice gives the same bits, and that nothing is written that should only be read.
# Does it notice a mistake?


# %%
class Wrong(SquareplusFromX):
    """The derivative without its factor 1/2."""

    def backward(self, xp, x, dy, dx):
        super().backward(xp, x, dy, dx)
        xp.multiply(dx, 2, out=dx)


try:
    vdnn.check_layer(Wrong(), (2, 3, 4, 4))
except vdnn.LayerError as error:
    print(error)

# %% [markdown]
# ## Second try: the derivative from $y$
#
# From $2y - x = \sqrt{x^2 + b}$ follows $x = y - b / 4y$. Put into the derivative, $x$ is gone:
#
# $$ \frac{dy}{dx} = \frac{y^2}{y^2 + b/4} . $$


# %%
class Squareplus(SquareplusFromX):
    """The same function; backward from y alone, so that nobody needs x any more."""

    def backward(self, xp, y, dy, dx):
        xp.multiply(y, y, out=dx)
        xp.divide(self.b / 4, dx, out=dx)
        xp.add(dx, 1, out=dx)  # 1 + b / 4y^2 = dx/dy
        xp.divide(dy, dx, out=dx)


vdnn.check_layer(Squareplus(), (2, 3, 4, 4))
print("it passes")

# %% [markdown]
# ## What it is worth
#
# The next convolution needs $y$ in any case. The first layer needs $x$ as well, the second does not: one map less for
# every activation. The plans say it to the byte; convolutions take the algorithms with least scratch here.


# %%
def network(activation, batch=64):
    net = vdnn.Network((batch, 1, 8, 8), name=activation.__name__)
    x = net.input
    for channels in (16, 16, 32, 32):
        x = net.add(activation(), net.add(BatchNorm2d(), net.add(Conv2d(channels, 3, padding=1), x)))
    x = net.add(Linear(10), net.add(Flatten(), net.add(MaxPool2d(2), x)))
    net.add(SoftmaxCrossEntropy(), x)
    return net


plans = {
    kind.__name__: vdnn.plan(network(kind), "keep_all", algorithms="memory") for kind in (SquareplusFromX, Squareplus)
}
figure, axes = plt.subplots(figsize=(6, 2.6), layout="constrained")
for name, plan in plans.items():
    axes.barh(name, plan.peak_bytes / 2**20)
    axes.text(plan.peak_bytes / 2**20, name, f" {plan.peak_bytes / 2**20:.2f} MiB", va="center")
axes.set_xlabel("peak of a training step, MiB (exact)")
axes.margins(x=0.2)
plt.show()

# %% [markdown]
# ## Train with it
#
# A network with a layer of your own is planned, moved and trained like any other. Losses and accuracy are measured.

# %%
data = digits()
trainer = vdnn.Trainer(network(Squareplus), policy="vdnn_all", optimizer=vdnn.Adam(2e-3), seed=0)
history = trainer.fit(data.train_images, data.train_labels, epochs=3)
result = trainer.evaluate(data.test_images, data.test_labels)
print([round(epoch.loss, 3) for epoch in history], f"{result.accuracy:.1%} of the test images right")
trainer.close()

# %% [markdown]
# ## Questions
#
# 1. Derive $x = y - b/4y$ from the definition. Why is $y$ never 0?
# 2. ReLU's backward can do with one *bit* for each element. Which bit? See `vdnn.layers.ReLU(saves="mask")`.
# 3. Write $y = x \cdot \sigma(x)$. Can its backward do without $x$? Look at the plot of $y$ before you answer.
# 4. The layer could write $y$ over $x$. Which line of `forward` would break, and how would you mend it?
