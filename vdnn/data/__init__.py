"""data: images to learn from, and batches of them in an order that needs no memory of its own.

`digits` and `synthetic` need no download; `mnist`, `cifar10`, `cifar100` and `ImageFolder` read what is on the disk.
`Batches` gives arrays batch by batch; a `Loader` reads, decodes, crops and flips in the background.  Either is a
`Source`, which `Trainer.fit` and `Trainer.evaluate` take.
"""

from vdnn.data.batches import Batches, Source, shifted
from vdnn.data.cifar import cifar10, cifar100
from vdnn.data.files import DataError
from vdnn.data.folder import ImageFolder
from vdnn.data.idx import mnist, read_idx
from vdnn.data.imagesets import ArraySet, ImageSet, Sets, Subset
from vdnn.data.loader import Loader
from vdnn.data.samples import Digits, digits, synthetic
from vdnn.data.transform import IMAGENET_DEVIATION, IMAGENET_MEAN, Transform

__all__ = [
    "IMAGENET_DEVIATION",
    "IMAGENET_MEAN",
    "ArraySet",
    "Batches",
    "DataError",
    "Digits",
    "ImageFolder",
    "ImageSet",
    "Loader",
    "Sets",
    "Source",
    "Subset",
    "Transform",
    "cifar10",
    "cifar100",
    "digits",
    "mnist",
    "read_idx",
    "shifted",
    "synthetic",
]
