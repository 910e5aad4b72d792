"""A classifier of Hugging Face's in a LightningModule whose batches are mappings, watched without any argument."""

import copy

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import huggingface
from netdyn import DynamicsMonitor, diagnose
from netdyn.functional import sample_basin

WORDS = "net.bert.embeddings.word_embeddings"


class Texts(Dataset):
    """Token ids, whose label is whether the first one is large."""

    def __init__(self, samples):
        self.inputs = huggingface.masked(samples)
        self.labels = (self.inputs["input_ids"][:, 0] > huggingface.WORDS // 2).long()

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {name: value[index] for name, value in self.inputs.items()} | {"labels": self.labels[index]}


class Classifier(L.LightningModule):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, *args, **kwargs):
        return self.net(*args, **kwargs)

    def training_step(self, batch, batch_idx):
        return self(**batch).loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-3)


@pytest.mark.filterwarnings("ignore:`accuracy` is:UserWarning")
def test_a_classifier_with_mappings_as_batches_is_measured_without_any_argument():
    data = Texts(96)
    module, monitor, said = Classifier(huggingface.bert(num_labels=2).train()), DynamicsMonitor(figures="never"), []
    monitor.monitor.inform = said.append
    trainer = L.Trainer(
        max_epochs=2,
        accelerator="cpu",
        callbacks=[monitor],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(data, 16, shuffle=False))
    report, net = monitor.report, copy.deepcopy(module.net).eval()
    right = net(**data.inputs).logits.argmax(1) == data.labels
    assert report.accuracy == pytest.approx(right.double().mean().item(), abs=1e-12)
    assert report.sample_basin.noise_at == (WORDS,)
    assert any(f"(noise on the output of {WORDS})" in line for line in said)

    class Called(nn.Module):
        """The same names as in the module, called by hand."""

        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, batch):
            return self.net(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits

    expected = diagnose(Called(), data.inputs, data.labels, measure=["modes"])
    assert [layer.name for layer in report.layers] == [layer.name for layer in expected.layers]
    assert len(report.layers) == 3
    for found, wanted in zip(report.layers, expected.layers, strict=True):
        torch.testing.assert_close(found.order_index, wanted.order_index, equal_nan=True)
    basin = sample_basin(Called(), data.inputs, data.labels, noise_at=[WORDS])
    assert report.sample_basin.radius == pytest.approx(basin.radius, rel=1e-4)
