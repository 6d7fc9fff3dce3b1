# SPDX-License-Identifier: Apache-2.0
"""The script that trained what ships, at a tiny size."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from benchmarks.train_dit import batch, build, main
from lutwise.consumers.diffusion.classifier import FeatureClassifier
from lutwise.consumers.diffusion.model import load_dit
from lutwise.consumers.diffusion.stock import blocks_of
from lutwise.consumers.diffusion.zoo import CLASSIFIER, DIGITS, load_digits
from lutwise.errors import DataError


def test_script_writes_what_the_package_reads(tmp_path: Path) -> None:
    shutil.copy(DIGITS, tmp_path)
    threads = torch.get_num_threads()
    try:
        main(["--part", "classifier", "--part", "dit", "--epochs", "1", "--steps", "2",
              "--out", str(tmp_path)])  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    FeatureClassifier.load(tmp_path / CLASSIFIER.name)
    dit = load_dit(tmp_path / "dit-digits")
    assert dit.classes == 10
    assert dit.latent_shape == (1, 8, 8)
    record = json.loads((tmp_path / "dit-digits" / "training.json").read_bytes())
    assert record["steps"] == 2
    assert record["parameters"] == sum(p.numel() for p in dit.transformer.parameters())


def test_untrained_net_is_the_identity_and_drops_no_labels() -> None:
    net = build().train()
    x, time = torch.randn(3, 1, 8, 8), torch.tensor([1, 2, 3])
    labels = torch.tensor([0, 1, 10])
    assert torch.equal(net(x, timestep=time, class_labels=labels).sample, torch.zeros(3, 1, 8, 8))
    hidden = torch.randn(3, 16, 128)
    block = blocks_of(net)[0]
    assert torch.equal(block(hidden, timestep=time, class_labels=labels), hidden)


def test_a_tenth_of_the_labels_is_dropped() -> None:
    torch.manual_seed(0)
    digits = load_digits()
    _, labels = batch(digits.train_images, digits.train_labels, 10_000)
    assert 0.09 < (labels == 10).float().mean() < 0.11


def test_digits_are_split_into_training_and_test() -> None:
    digits = load_digits()
    assert digits.train_images.shape == (1437, 1, 8, 8)
    assert digits.test_images.shape == (360, 1, 8, 8)
    lowest, highest = digits.train_images.aminmax()
    assert (lowest.item(), highest.item()) == (-1, 1)
    assert sorted(set(digits.test_labels.tolist())) == list(range(10))


def test_damaged_digits_are_named(tmp_path: Path) -> None:
    path = tmp_path / "digits.npz"
    path.write_bytes(DIGITS.read_bytes()[:5000])
    with pytest.raises(DataError, match="cannot read the digits"):
        load_digits(path)
