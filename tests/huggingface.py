"""Small models of Hugging Face's, made from a config with random weights, and inputs for them."""

import torch

WORDS, LENGTH = 60, 9


def model(kind, config, seed=0, **options):
    """A model in eval mode; weights ten times as large as usual, so that its answers depend on the input."""
    import transformers

    own = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    torch.manual_seed(seed)
    made = getattr(transformers, kind)(getattr(transformers, config)(**own | options)).eval()
    with torch.no_grad():
        for weight in made.parameters():
            if weight.ndim > 1:
                weight *= 10
    return made


def bert(kind="BertForSequenceClassification", **options):
    return model(kind, "BertConfig", vocab_size=WORDS, **options)


def vit(**options):
    return model("ViTForImageClassification", "ViTConfig", image_size=16, patch_size=4, **options)


def tokens(samples=64, length=LENGTH, seed=1):
    return torch.randint(3, WORDS, (samples, length), generator=torch.Generator().manual_seed(seed))


def masked(samples=64):
    """Inputs by name, of which the last tokens are padding."""
    ids = tokens(samples)
    mask = (torch.arange(LENGTH) < (3 + torch.arange(samples) % 7)[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask}
