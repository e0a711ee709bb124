"""Train a small convolutional classifier on scikit-learn's handwritten digits, with modscope beside it.

    python examples/digits.py                 trains until Ctrl-C
    python examples/digits.py --epochs 20     or so many times over the data

From another terminal: `modscope tree`, `modscope params --stats`, `modscope watch 'features.*'`.
"""

from __future__ import annotations

import argparse
import itertools
import signal
from collections import OrderedDict
from collections.abc import Sequence
from types import FrameType

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset, random_split

import modscope_server

__all__ = ["DigitClassifier", "accuracy", "digits", "main", "train_epoch"]


class DigitClassifier(nn.Module):
    """Images [N, 1, 8, 8] to logits [N, 10]: two convolutions, then two Linear layers."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.features = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(1, width, 3, padding=1),
                norm=nn.BatchNorm2d(width),
                relu1=nn.ReLU(),
                conv2=nn.Conv2d(width, 2 * width, 3, padding=1),
                relu2=nn.ReLU(),
                pool=nn.MaxPool2d(2),
            )
        )
        self.head = nn.Sequential(
            OrderedDict(
                fc1=nn.Linear(2 * width * 4 * 4, 64),
                relu=nn.ReLU(),
                dropout=nn.Dropout(0.1),
                fc2=nn.Linear(64, 10),
            )
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [N, 10] of images [N, 1, 8, 8]."""
        logits: torch.Tensor = self.head(self.features(images).flatten(1))
        return logits


def digits(seed: int = 0) -> tuple[Dataset[tuple[torch.Tensor, ...]], Dataset[tuple[torch.Tensor, ...]]]:
    """The 1,797 bundled images, split into 1,437 to train on and 360 to judge by."""
    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16.0
    labels = torch.tensor(bunch.target, dtype=torch.int64)
    train, held_out = random_split(
        TensorDataset(images, labels), [0.8, 0.2], generator=torch.Generator().manual_seed(seed)
    )
    return train, held_out


def train_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, loader: DataLoader[tuple[torch.Tensor, ...]]
) -> float:
    """Goes once over the data; gives the mean loss."""
    model.train()
    total = 0.0
    for images, labels in loader:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        total += loss.item()
    return total / len(loader)


@torch.no_grad()
def accuracy(model: nn.Module, loader: DataLoader[tuple[torch.Tensor, ...]]) -> float:
    """Share of the images that the model reads right."""
    model.eval()
    right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in loader)
    return right / sum(len(labels) for _, labels in loader)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains until it is stopped or has gone over the data `--epochs` times."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, help="how often to go over the data (default: until stopped)")
    parser.add_argument("--workers", type=int, default=0, help="processes that load data")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    stopped = False

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)

    torch.set_num_threads(1)  # so small a model gains nothing from more, and loses much on a busy machine
    torch.manual_seed(options.seed)
    train, held_out = digits(options.seed)
    train_loader = DataLoader(train, batch_size=32, shuffle=True, num_workers=options.workers)
    held_out_loader = DataLoader(held_out, batch_size=360)
    model = DigitClassifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    modscope_server.attach(model, optimizer=optimizer, writable=True)  # the one added line

    for epoch in itertools.count(1):
        loss = train_epoch(model, optimizer, train_loader)
        print(f"epoch {epoch}  loss {loss:.4f}  accuracy {accuracy(model, held_out_loader):.3f}", flush=True)
        if stopped or epoch == options.epochs:
            break


if __name__ == "__main__":
    main()
