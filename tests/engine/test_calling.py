"""Networks called as people call them: by name, with several inputs, with token ids, with logits inside the output."""

import pytest
import torch
from torch import nn

import huggingface
import reference
from netdyn import Monitor, diagnose
from netdyn.functional import (
    batchnorm_gap,
    linear_substitution_map,
    linear_tail,
    local_fields,
    sample_basin,
    weight_basin,
)
from netdyn.metrics import BatchNormGap, LinearTail, SampleBasin


def same_report(found, expected):
    """The same numbers, layer by layer and basin by basin."""
    assert found.scalars() == expected.scalars()
    assert len(expected.layers) > 0


# Several inputs -------------------------------------------------------------------------------------------------------


class Two(nn.Module):
    """Two inputs; the logits come with something else."""

    def __init__(self, wrap=lambda logits, hidden: logits):
        super().__init__()
        self.a, self.b, self.norm, self.out = nn.Linear(5, 16), nn.Linear(3, 16), nn.BatchNorm1d(32), nn.Linear(32, 4)
        self.wrap = wrap

    def forward(self, first, second):
        hidden = torch.relu(self.norm(torch.cat([self.a(first), self.b(second)], 1)))
        return self.wrap(self.out(hidden), hidden)


class One(nn.Module):
    """The same network with one input, which it cuts itself."""

    def __init__(self, two):
        super().__init__()
        self.two = two

    def forward(self, x):
        return self.two(x[:, :5], x[:, 5:])


@pytest.fixture(scope="module")
def several():
    torch.manual_seed(0)
    net, x = Two().eval(), torch.randn(150, 8)
    return net, x, net(x[:, :5], x[:, 5:]).argmax(1).detach()


INPUTS = {
    "sequence": lambda x: (x[:, :5], x[:, 5:]),
    "list": lambda x: [x[:, :5], x[:, 5:]],
    "mapping": lambda x: {"second": x[:, 5:], "first": x[:, :5]},
}


@pytest.mark.parametrize("given", INPUTS.values(), ids=INPUTS)
def test_several_inputs_give_the_layers_of_the_network_with_one(several, given):
    net, x, y = several
    measure = ["modes", "linear", "batchnorm"]
    found, expected = (diagnose(*own, y, measure=measure) for own in ((net, given(x)), (One(net), x)))
    assert found.accuracy == expected.accuracy == 1
    renamed = {tag.replace("two.", ""): value for tag, value in expected.scalars().items()}
    assert found.scalars() == pytest.approx(renamed, abs=1e-6)


@pytest.mark.parametrize("given", INPUTS.values(), ids=INPUTS)
def test_the_radius_of_several_inputs_is_that_of_a_simulation(several, given):
    net, x, y = several
    basin = sample_basin(net, given(x), y, rays=16)
    (accuracy,) = reference.accuracy_ladder(One(net), x, y, [basin.radius], 200, torch.Generator().manual_seed(3))
    # 150 samples on 16 rays: the standard error of the accuracy, over rays, is below sqrt(.25/2400) = .010.
    assert accuracy == pytest.approx(0.5, abs=0.03)
    assert basin.noise_at == ()


WRAPS = {
    "tuple": lambda logits, hidden: (logits, hidden),
    "mapping": lambda logits, hidden: {"hidden": hidden, "logits": logits},
}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_logits_inside_an_output_are_those_of_the_bare_network(several, wrap):
    net, x, y = several
    wrapped = Two(wrap).eval()
    wrapped.load_state_dict(net.state_dict())
    same_report(diagnose(wrapped, INPUTS["list"](x), y), diagnose(net, INPUTS["list"](x), y))


def test_every_function_and_metric_calls_and_opens_alike(several):
    net, x, y = several
    wrapped = Two(WRAPS["tuple"]).eval()
    wrapped.load_state_dict(net.state_dict())
    given = INPUTS["mapping"](x)
    for function in (local_fields, linear_substitution_map):
        found, expected = function(wrapped, given), function(One(net), x)
        assert torch.equal(found["norm" if "norm" in found else "model"], next(iter(expected.values())))
    assert list(linear_tail(wrapped, given, y).values()) == list(linear_tail(One(net), x, y).values())
    assert batchnorm_gap(wrapped, given, y) == batchnorm_gap(One(net), x, y)
    assert weight_basin(wrapped, given, y).radius == weight_basin(net, given, y).radius
    for metric in (BatchNormGap, LinearTail):
        own, other = metric(), metric()
        own.update(wrapped, given, y)
        other.update(One(net), x, y)
        assert torch.equal(own.compute(), other.compute())
    metric = SampleBasin(max_samples=None)
    metric.update(wrapped, given, y)
    assert metric.compute() == sample_basin(wrapped, given, y).radius


# Token ids ------------------------------------------------------------------------------------------------------------


class Tokens(nn.Module):
    """A classifier of tokens whose first embeddings do not run, or are the same for all samples."""

    def __init__(self):
        super().__init__()
        self.shared, self.places, self.words = nn.Embedding(20, 8), nn.Embedding(6, 8), nn.Embedding(20, 8)
        self.hidden, self.out = nn.Linear(48, 24), nn.Linear(24, 3)

    def forward(self, ids):
        return self.read(self.places(torch.arange(6)) + self.words(ids))

    def read(self, embedded):
        return self.out(torch.relu(self.hidden(embedded.flatten(1))))


class Embedded(nn.Module):
    """The same network, of what its words' embedding puts out."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, words):
        return self.net.read(self.net.places(torch.arange(6)) + words)


@pytest.fixture(scope="module")
def tokens():
    torch.manual_seed(1)
    net, ids = Tokens().eval(), torch.randint(20, (200, 6))
    return net, ids, net(ids).argmax(1)


def test_noise_falls_on_the_embedding_that_runs(tokens):
    net, ids, y = tokens
    found, named = (sample_basin(net, ids, y, accuracy=0.75, noise_at=names) for names in (None, ["words"]))
    assert found.noise_at == named.noise_at == ("words",)
    assert (found.radius, found.interval) == (named.radius, named.interval)


def test_the_radius_of_tokens_is_that_of_a_simulation(tokens):
    net, ids, y = tokens
    radius = sample_basin(net, ids, y, accuracy=0.75, rays=16).radius
    words = net.words(ids).detach()
    (accuracy,) = reference.accuracy_ladder(Embedded(net), words, y, [radius], 100, torch.Generator().manual_seed(3))
    # 200 samples on 16 rays: the standard error of the accuracy, over rays, is below sqrt(.25/3200) = .009.
    assert accuracy == pytest.approx(0.75, abs=0.03)


def test_a_start_line_names_the_embedding(tokens):
    net, ids, y = tokens
    said = []
    watch = Monitor((ids, y), measure=["sample_basin"], accuracy=0.75)
    watch.inform = said.append
    watch.measure(net, 0)
    assert "on 200 samples (noise on the output of words), at" in said[0]


def test_noise_on_floating_inputs_is_not_moved_to_an_embedding(tokens):
    net, ids, y = tokens

    class WithMask(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, ids, scale):
            return self.net(ids) * scale

    assert sample_basin(WithMask(), (ids, torch.ones(200, 1)), y, accuracy=0.75).noise_at == ()


def test_a_floating_mask_beside_token_ids_gets_no_noise(tokens):
    net, ids, y = tokens

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, ids, attention_mask):
            return self.net(ids) * attention_mask

    inputs = {"ids": ids, "attention_mask": torch.ones(200, 1)}
    found, plain = sample_basin(Masked(), inputs, y, accuracy=0.75), sample_basin(net, ids, y, accuracy=0.75)
    assert found.noise_at == ("net.words",)
    assert found.radius == pytest.approx(plain.radius, rel=0.3)


# Hugging Face ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert():
    """A classifier with random weights that is right on each sample, of which it puts some in every class."""
    net, x = huggingface.bert(num_labels=3), huggingface.masked(96)
    with torch.no_grad():
        net.classifier.bias -= net(**x).logits.median(0).values
        return net, x, net(**x).logits.argmax(1)


WORDS = "bert.embeddings.word_embeddings"


def test_a_classifier_takes_its_inputs_by_name(bert):
    net, x, y = bert
    found = diagnose(net, x, y, weight_rays=2)
    expected = diagnose(net, x, y, weight_rays=2, forward=lambda model, x: model(**x).logits, noise_at=[WORDS])
    same_report(found, expected)
    assert [layer.name for layer in found.layers] == [
        *(f"bert.encoder.layer.{i}.intermediate.dense" for i in range(2)),
        "bert.pooler.dense",
    ]
    assert found.sample_basin.noise_at == (WORDS,)


def test_its_radius_is_that_of_noise_on_the_embedded_words(bert):
    net, x, y = bert

    class OfWords(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, words):
            return self.net(inputs_embeds=words, attention_mask=x["attention_mask"]).logits

    radius = sample_basin(net, x, y, rays=8).radius
    words = net.bert.embeddings.word_embeddings(x["input_ids"]).detach()
    (accuracy,) = reference.accuracy_ladder(OfWords(), words, y, [radius], 30, torch.Generator().manual_seed(3))
    # 96 samples on 8 and on 30 rays: the standard error of the difference over rays is below .021.
    assert accuracy == pytest.approx(0.5, abs=0.06)


def test_its_modes_are_those_of_the_fields_that_hooks_take(bert):
    """The pooler: fields by a hook, the map by hand, numbers from the slow twins."""
    net, x, y = bert
    fields = []
    hook = net.bert.pooler.dense.register_forward_hook(lambda module, args, out: fields.append(out.detach()))
    net(**x)
    hook.remove()
    tuning = reference.class_tuning(fields[0], y, 3)
    (layer,) = diagnose(net, x, y, measure=["modes"], layers=["bert.pooler.dense"]).layers
    expected = reference.order_index(tuning, net.classifier.weight)
    assert torch.allclose(layer.order_index, torch.from_numpy(expected), atol=1e-9)


def test_an_image_classifier_is_opened():
    net, x = huggingface.vit(num_labels=3), torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    y = net(x).logits.argmax(1)
    found = diagnose(net, x, y, weight_rays=2)
    same_report(found, diagnose(net, x, y, weight_rays=2, forward=lambda model, x: model(x).logits))
    # The name depends on the release.
    wide = [name for name, module in net.named_modules() if getattr(module, "out_features", None) == 48]
    assert [layer.name for layer in found.layers] == wide
    assert len(wide) == 2


def test_an_encoder_whose_first_embedding_never_runs_gets_its_noise_where_it_does():
    import transformers

    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
            config = transformers.T5Config(vocab_size=huggingface.WORDS, **sizes)
            self.transformer, self.out = transformers.T5EncoderModel(config), nn.Linear(16, 3)

        def forward(self, input_ids):
            return self.out(self.transformer(input_ids=input_ids).last_hidden_state.mean(1))

    torch.manual_seed(0)
    net, ids = Pooled().eval(), huggingface.tokens()
    with torch.no_grad():
        net.out.bias -= net(ids).median(0).values
        y = net(ids).argmax(1)
    embeddings = [name for name, module in net.named_modules() if isinstance(module, nn.Embedding)]
    assert embeddings[0] == "transformer.shared"
    for inputs in (ids, {"input_ids": ids}):
        (found,) = sample_basin(net, inputs, y, accuracy=0.8).noise_at
        # In some releases both names are the same module.
        assert net.get_submodule(found) is net.transformer.encoder.embed_tokens
