"""The callback from the command line: LightningCLI creates it from a YAML file by its class path.

    python examples/cli.py fit --config examples/cli.yaml
    python examples/cli.py fit --config examples/cli.yaml --trainer.callbacks.weight_rays 8
    python examples/cli.py fit --config examples/cli.yaml --print_config

Needs the extra `cli`: pip install ".[cli,examples]" in a clone.
"""

from __future__ import annotations

import lightning as L
from lightning.pytorch.cli import LightningCLI
from quickstart import Digits, digits
from torch.utils.data import DataLoader


class DigitsData(L.LightningDataModule):
    """The quickstart's digits as a LightningDataModule.

    Args:
        batch_size: Samples per training batch.
    """

    def __init__(self, batch_size: int = 64) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.train, self.val = digits()

    def train_dataloader(self) -> DataLoader:
        """1,400 digits, shuffled."""
        return DataLoader(self.train, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """The other 397 digits."""
        return DataLoader(self.val, batch_size=256)


if __name__ == "__main__":
    LightningCLI(Digits, DigitsData, save_config_callback=None)
