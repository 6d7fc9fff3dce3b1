# SPDX-License-Identifier: Apache-2.0
"""Train the built-in nets on Fashion-MNIST and write what the package ships.

The data is the Debian package ``dataset-fashion-mnist`` (MIT). Writes ``NAME.safetensors`` and
``NAME.json`` per net, and ``fashion_mnist.npz`` with 256 images of the training set for
calibration and 2000 of the test set (200 per class) for evaluation.

    python benchmarks/train_zoo.py --net resnet8 --net mobilenet --epochs 10
    python benchmarks/train_zoo.py --net vit --net mlp --net cnn --epochs 15
    python benchmarks/train_zoo.py --data-only
"""

import argparse
import gzip
import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from lutwise.quant.zoo.architectures import Cnn, Mlp, MobileNet, ResNet8
from lutwise.quant.zoo.transformer import Vit

NETS: dict[str, tuple[type[nn.Module], float]] = {
    "resnet8": (ResNet8, 6e-3),
    "mobilenet": (MobileNet, 6e-3),
    "vit": (Vit, 2e-3),
    "mlp": (Mlp, 4e-3),
    "cnn": (Cnn, 6e-3),
}
MEAN, STD = 0.2860, 0.3530
SEED = 0
ZOO = Path(__file__).parents[1] / "quant" / "zoo"


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """Read a gzipped IDX file of unsigned bytes."""
    raw = gzip.decompress(path.read_bytes())
    dims = raw[3]
    shape = np.frombuffer(raw, ">u4", dims, 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape(shape)


def load(folder: Path, part: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return images (n, 28, 28) and labels (n,) of ``train`` or ``t10k``."""
    images = read_idx(folder / f"{part}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{part}-labels-idx1-ubyte.gz")
    return images, labels.astype(np.int64)


def balanced(labels: npt.NDArray[np.int64], count: int, rng: np.random.Generator) -> Any:
    """Draw ``count`` indices, the classes as equal as possible."""
    classes = np.unique(labels)
    order = [rng.permutation(np.flatnonzero(labels == c)) for c in classes]
    taken = np.stack([o[: -(-count // len(classes))] for o in order], axis=1).reshape(-1)[:count]
    return np.sort(taken)


def write_data(folder: Path) -> None:
    """Write the subset that ships with the package."""
    rng = np.random.default_rng(SEED)
    arrays = {}
    for name, part, count in (("calib", "train", 256), ("eval", "t10k", 2000)):
        images, labels = load(folder, part)
        index = balanced(labels, count, rng)
        arrays[f"{name}_images"] = images[index][:, None]
        arrays[f"{name}_labels"] = labels[index].astype(np.uint8)
        arrays[f"{name}_index"] = index.astype(np.int32)
    np.savez_compressed(ZOO / "fashion_mnist.npz", **arrays)


def normalise(images: npt.NDArray[np.uint8]) -> Tensor:
    """Return float images (n, 1, 28, 28)."""
    return ((torch.from_numpy(images.copy()).float() / 255 - MEAN) / STD)[:, None]


def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the top-1 accuracy."""
    net.eval()
    with torch.no_grad():
        hits = [(net(x[i : i + 500]).argmax(1) == y[i : i + 500]) for i in range(0, len(x), 500)]
    return torch.cat(hits).float().mean().item()


def train(name: str, epochs: int, folder: Path, threads: int) -> None:
    """Train one net and write its weights and a record of how."""
    torch.set_num_threads(threads)
    torch.manual_seed(SEED)
    build, rate = NETS[name]
    net = build()
    pixels, classes = load(folder, "train")
    x, y = normalise(pixels), torch.as_tensor(classes)
    batch, steps = 128, len(x) // 128
    optimizer = torch.optim.AdamW(net.parameters(), rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, epochs * steps, pct_start=0.2)
    start = time.process_time()
    for epoch in range(epochs):
        net.train()
        order = torch.randperm(len(x))
        for i in range(steps):
            index = order[i * batch : (i + 1) * batch]
            images = x[index].flip(3) if torch.rand(()) < 0.5 else x[index]
            dx, dy = torch.randint(-2, 3, (2,)).tolist()
            loss = F.cross_entropy(
                net(images.roll((dx, dy), (2, 3))), y[index], label_smoothing=0.05
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}/{epochs} loss {loss.item():.3f}", flush=True)
    test_pixels, labels = load(folder, "t10k")
    score = accuracy(net, normalise(test_pixels), torch.as_tensor(labels))
    state = {k: v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    save_file(state, ZOO / f"{name}.safetensors")
    record = {
        "net": name,
        "data": "Fashion-MNIST, 60000 training images",
        "test_accuracy": round(score, 4),
        "test_images": len(labels),
        "epochs": epochs,
        "seed": SEED,
        "parameters": sum(p.numel() for p in net.parameters()),
        "cpu_seconds": round(time.process_time() - start),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    (ZOO / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record))


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--net", choices=NETS, action="append")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data-only", action="store_true")
    args = parser.parse_args(argv)
    write_data(args.data)
    for name in [] if args.data_only else args.net or NETS:
        train(name, args.epochs, args.data, args.threads)


if __name__ == "__main__":
    main()
