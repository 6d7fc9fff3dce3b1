# SPDX-License-Identifier: Apache-2.0
"""Train the diffusion transformer and the classifier that ship with the package.

The data is the set of 8x8 digits that scikit-learn carries: the test set of "Optical Recognition
of Handwritten Digits" (UCI, CC BY 4.0). Writes ``digits.npz``, ``classifier.safetensors`` and the
folder ``dit-digits`` into ``consumers/diffusion/zoo``. One core, about ten minutes.

    python benchmarks/train_dit.py
    python benchmarks/train_dit.py --part classifier

Two things that the stock class leaves to its trainer: the modulation of each block starts at zero
(arXiv 2212.09748, section 3.2, adaLN-Zero), and labels are dropped once per image, not
independently in every block.
"""

import argparse
import copy
import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, DiTTransformer2DModel
from torch import Tensor, nn

from lutwise.consumers.diffusion.classifier import FeatureClassifier
from lutwise.consumers.diffusion.zoo import CLASSIFIER, DIGITS, MODELS, Digits, load_digits
from lutwise.workspace import to_json

SEED = 0
CLASSES = 10
TRAIN_SHARE = 0.8
CONFIG: dict[str, Any] = {
    "in_channels": 1,
    "out_channels": 1,
    "num_embeds_ada_norm": CLASSES,
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "num_layers": 6,
    "sample_size": 8,
    "patch_size": 2,
}


def write_digits(path: Path) -> None:
    """Write images, labels, and the split into training and test."""
    from sklearn.datasets import load_digits as fetch

    data = fetch()
    generator = torch.Generator().manual_seed(SEED)
    order = torch.randperm(len(data.target), generator=generator).numpy()
    train = np.zeros(len(order), dtype=bool)
    train[order[: int(TRAIN_SHARE * len(order))]] = True
    np.savez_compressed(
        path,
        images=data.images.astype(np.uint8),
        labels=data.target.astype(np.uint8),
        train=train,
    )


def train_classifier(digits: Digits, path: Path, epochs: int) -> dict[str, Any]:
    """Train the classifier with cross-entropy on slightly noisy images, and write it."""
    torch.manual_seed(SEED)
    net = FeatureClassifier()
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
    images, labels = digits.train_images, digits.train_labels
    start = time.process_time()
    for _ in range(epochs):
        for index in torch.randperm(len(images)).split(64):
            noisy = images[index] + 0.05 * torch.randn_like(images[index])
            # Dropout of features, so that each of them says something.
            logits = net.head(F.dropout(net.body(noisy), 0.3))
            loss = F.cross_entropy(logits, labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    net.eval().save(path)
    with torch.no_grad():
        right = net(digits.test_images).argmax(1) == digits.test_labels
    return {
        "net": "feature classifier",
        "test_accuracy": round(right.float().mean().item(), 4),
        "test_images": len(right),
        "epochs": epochs,
        "cpu_seconds": round(time.process_time() - start),
    }


def build() -> DiTTransformer2DModel:
    """Return a transformer that starts as the identity and drops no labels by itself."""
    net = DiTTransformer2DModel(**CONFIG)
    for block in net.transformer_blocks:
        nn.init.zeros_(block.norm1.linear.weight)
        nn.init.zeros_(block.norm1.linear.bias)
        block.norm1.emb.class_embedder.dropout_prob = 0.0
    for layer in (net.proj_out_1, net.proj_out_2):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return net


def train_dit(digits: Digits, folder: Path, steps: int, seed: int) -> dict[str, Any]:
    """Train to predict noise, and write the moving average of the weights as float16."""
    torch.manual_seed(seed)
    net = build()
    average = copy.deepcopy(net).eval()
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3, betas=(0.9, 0.99), weight_decay=0.0)
    images, labels = digits.train_images, digits.train_labels
    start, running = time.process_time(), 0.0
    for step in range(steps):
        done = step / steps
        rate = min(1.0, (step + 1) / 100) * (1.0 if done < 0.6 else max(0.05, (1 - done) / 0.4))
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * rate
        loss = denoising_loss(net, scheduler, *batch(images, labels, 128))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        share = 1 - min(0.999, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), share)
        running = loss.item() if step == 0 else 0.98 * running + 0.02 * loss.item()
        if (step + 1) % 200 == 0:
            print(f"step {step + 1}/{steps} loss {running:.4f}", flush=True)
    parameters = sum(p.numel() for p in net.parameters())
    average.half().save_pretrained(folder / "transformer")
    scheduler.save_pretrained(folder / "scheduler")
    record = {
        "net": "DiTTransformer2DModel, moving average of the weights, stored as float16",
        "data": f"digits.npz, {len(images)} training images",
        "parameters": parameters,
        "steps": steps,
        "batch": 128,
        "loss": round(running, 4),
        "seed": seed,
        "cpu_seconds": round(time.process_time() - start),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    (folder / "training.json").write_bytes(to_json(record))
    return record


def batch(images: Tensor, labels: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Draw images and their labels; every tenth label becomes the null class."""
    index = torch.randint(0, len(images), (size,))
    dropped = torch.rand(size) < 0.1
    return images[index], torch.where(dropped, CLASSES, labels[index])


def denoising_loss(
    net: nn.Module, scheduler: DDPMScheduler, images: Tensor, labels: Tensor
) -> Tensor:
    """Return the mean squared error of predicted noise at random timesteps."""
    steps = torch.randint(0, scheduler.config.num_train_timesteps, (len(images),))
    noise = torch.randn_like(images)
    noisy = scheduler.add_noise(images, noise, steps)
    return F.mse_loss(net(noisy, timestep=steps, class_labels=labels).sample, noise)


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("digits", "classifier", "dit"), action="append")
    parser.add_argument("--epochs", type=int, default=40, help="of the classifier")
    parser.add_argument("--steps", type=int, default=2600, help="of the transformer")
    parser.add_argument("--seed", type=int, default=SEED, help="of the transformer's training")
    parser.add_argument("--out", type=Path, default=DIGITS.parent)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    parts = args.part or ("digits", "classifier", "dit")
    digits = args.out / DIGITS.name
    args.out.mkdir(parents=True, exist_ok=True)
    if "digits" in parts:
        write_digits(digits)
    data = load_digits(digits)
    if "classifier" in parts:
        print(json.dumps(train_classifier(data, args.out / CLASSIFIER.name, args.epochs)))
    if "dit" in parts:
        folder = args.out / MODELS["zoo/dit-digits"].name
        print(json.dumps(train_dit(data, folder, args.steps, args.seed)))


if __name__ == "__main__":
    main()
