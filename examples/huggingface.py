"""Hugging Face's Trainer, watched: a small vision transformer with random weights learns handwritten digits.

Nothing is downloaded. It takes half a minute on two cores; the curves of the Trainer's own log stand in ``runs``.

python examples/huggingface.py
tensorboard --logdir runs
"""

from __future__ import annotations

from typing import Any

import torch
from sklearn.datasets import load_digits
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

from netdyn.huggingface import DynamicsCallback


class Digits(Dataset):  # type: ignore[type-arg]
    """Images of 8 × 8 pixels between 0 and 1, as the model's arguments."""

    def __init__(self, part: slice) -> None:
        images, labels = load_digits(return_X_y=True)
        self.images = torch.tensor(images[part] / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
        self.labels = torch.tensor(labels[part])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": self.images[index], "labels": self.labels[index]}


def main(epochs: int = 5, folder: str = "runs/huggingface") -> None:
    """Train, and print what the Trainer's log says of the network, and the last report."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = ViTForImageClassification(ViTConfig(image_size=8, patch_size=2, num_channels=1, num_labels=10, **sizes))
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=32,
            learning_rate=3e-3,
            logging_strategy="epoch",
            save_strategy="no",
            report_to=["tensorboard"],
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=Digits(slice(1400)),
        eval_dataset=Digits(slice(1400, None)),
    )
    callback = DynamicsCallback(trainer, probe_size=200, detail="summary", loggers=f"{folder}/netdyn")
    trainer.add_callback(callback)  # the one line
    trainer.train()

    for entry in trainer.state.log_history:
        if "probe/accuracy" in entry:
            print(f"step {entry['step']:4d}: accuracy {entry['probe/accuracy']:.2f}", end=", ")
            print(
                f"held-out {entry['probe/val_accuracy']:.2f}, weight radius {entry.get('basin/weight/radius', 0):.2f}"
            )
    print(callback.report)


if __name__ == "__main__":
    main()
