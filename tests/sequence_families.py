"""Attention and recurrence: more of `families.py`, for inputs that are sequences.

sequences [samples, 7, 6], tokens [samples, 7], images [samples, 2, 8, 8]; 5 classes
"""

import torch
import torch.nn.functional as F
from torch import nn

from families import (
    CLASSES,
    FEATURES,
    SAMPLES,
    STEPS,
    Family,
    affine,
    convolved,
    draw,
    features,
    gelu,
    images,
    layer_norm,
    positive_part,
    sequences,
    sigmoid,
    silu,
    tokens,
)
from reference import normalised


def heads_of(x, heads):
    """[samples, steps, features] → [samples, heads, steps, features / heads]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def attention(q, k, v, heads, absent=None):
    """Scaled dot-product attention in full; `absent` [samples, steps] is true for keys that nobody may look at."""
    q, k, v = (heads_of(x, heads) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if absent is not None:
        scores = scores.masked_fill(absent[:, None, None, :], -torch.inf)
    weights = torch.exp(scores - scores.amax(dim=-1, keepdim=True))
    weights = weights / weights.sum(dim=-1, keepdim=True)
    return (weights @ v).transpose(1, 2).flatten(2)


def multihead(module, x, absent=None):
    """nn.MultiheadAttention of a sequence with itself, samples first."""
    q, k, v = (x @ module.in_proj_weight.T + module.in_proj_bias).chunk(3, dim=-1)
    return affine(module.out_proj, attention(q, k, v, module.num_heads, absent))


# Attention ----------------------------------------------------------------------------------------------------------


class VisionBlock(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.act, self.fc2 = nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)

    def forward(self, x):
        q, k, v = (heads_of(part, 2) for part in self.qkv(self.norm1(x)).chunk(3, dim=-1))
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.fc2(self.act(self.fc1(self.norm2(x))))

    def explicit(self, tape, name, x):
        q, k, v = affine(self.qkv, layer_norm(self.norm1, x)).chunk(3, dim=-1)
        x = x + affine(self.proj, attention(q, k, v, 2))
        return x + affine(self.fc2, tape.act(f"{name}.fc1", affine(self.fc1, layer_norm(self.norm2, x)), gelu))


class VisionTransformer(nn.Module):
    """Patches, a class token, positions, blocks.

    The head reads the class token alone, so that the last block's other units lead nowhere.
    """

    def __init__(self, width=8, hidden=10):
        super().__init__()
        self.patches = nn.Conv2d(2, width, 4, stride=4)
        self.cls, self.positions = nn.Parameter(torch.zeros(1, 1, width)), nn.Parameter(torch.zeros(1, 5, width))
        self.blocks = nn.ModuleList(VisionBlock(width, hidden) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def embed(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        return torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1) + self.positions

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])

    def explicit(self, tape, x):
        x = self.embed(x)
        for i, block in enumerate(self.blocks):
            x = block.explicit(tape, f"blocks.{i}", x)
        return affine(self.head, layer_norm(self.norm, x)[:, 0])


class TextEncoder(nn.Module):
    """nn.TransformerEncoder between an embedding and a mean over the steps that are not padded.

    Its input is a tensor of tokens, or with `padded` a mapping of tokens and a mask that is true at padding.
    """

    def __init__(self, activation="relu", batch_first=True, norm_first=False, padded=False):
        super().__init__()
        self.batch_first, self.padded = batch_first, padded
        self.embed, self.positions = nn.Embedding(11, 8), nn.Parameter(torch.zeros(STEPS, 8))
        layer = nn.TransformerEncoderLayer(
            8, 2, 10, activation=activation, batch_first=batch_first, norm_first=norm_first
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=batch_first and not norm_first)
        self.head = nn.Linear(8, CLASSES)
        self.phi = {"relu": positive_part, "gelu": gelu}[activation]

    def forward(self, inputs):
        ids, absent = (inputs["ids"], inputs["absent"]) if self.padded else (inputs, None)
        x = self.embed(ids) + self.positions
        if not self.batch_first:
            x = x.transpose(0, 1)
        x = self.encoder(x, src_key_padding_mask=absent)
        if not self.batch_first:
            x = x.transpose(0, 1)
        return self.head(self.mean(x, absent))

    @staticmethod
    def mean(x, absent):
        present = torch.ones_like(x[..., :1]) if absent is None else (~absent)[..., None].to(x)
        return (x * present).sum(dim=1) / present.sum(dim=1)

    def explicit(self, tape, inputs):
        ids, absent = (inputs["ids"], inputs["absent"]) if self.padded else (inputs, None)
        x = self.embed.weight[ids] + self.positions
        for i, layer in enumerate(self.encoder.layers):
            if layer.norm_first:
                x = x + multihead(layer.self_attn, layer_norm(layer.norm1, x), absent)
                x = x + self.feed_forward(tape, i, layer, layer_norm(layer.norm2, x))
            else:
                x = layer_norm(layer.norm1, x + multihead(layer.self_attn, x, absent))
                x = layer_norm(layer.norm2, x + self.feed_forward(tape, i, layer, x))
        return affine(self.head, self.mean(x, absent))

    def feed_forward(self, tape, i, layer, x):
        return affine(layer.linear2, tape.act(f"encoder.layers.{i}.linear1", affine(layer.linear1, x), self.phi))


def padded_tokens():
    """Each sample has from 1 to 7 steps that are not padding."""
    length = 1 + torch.arange(SAMPLES) * 3 % STEPS
    return {"ids": tokens(), "absent": torch.arange(STEPS) >= length[:, None]}


class AttentionBlock(nn.Module):
    """nn.MultiheadAttention in a block of one's own, with the steps first."""

    def __init__(self):
        super().__init__()
        self.first, self.attention = nn.Linear(FEATURES, 8), nn.MultiheadAttention(8, 2)
        self.norm = nn.LayerNorm(8)
        self.fc1, self.fc2, self.head = nn.Linear(8, 9), nn.Linear(9, 8), nn.Linear(8, CLASSES)

    def forward(self, x):
        x = torch.tanh(self.first(x)).permute(1, 0, 2)
        x = self.norm(x + self.attention(x, x, x)[0])
        x = x + self.fc2(F.silu(self.fc1(x)))
        return self.head(x[-1])

    def explicit(self, tape, x):
        x = tape.act("first", affine(self.first, x), torch.tanh)
        x = layer_norm(self.norm, x + multihead(self.attention, x))
        x = x + affine(self.fc2, tape.act("fc1", affine(self.fc1, x), silu))
        return affine(self.head, x[:, -1])


class Windows(nn.Module):
    """Attention and a feed-forward part inside windows of an image, which are samples of their own to the modules."""

    def __init__(self, width=4, hidden=3):
        super().__init__()
        self.first = nn.Conv2d(2, width, 1)
        self.qkv, self.norm = nn.Linear(width, 3 * width), nn.LayerNorm(width)
        self.fc1, self.act, self.fc2 = nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)
        self.head = nn.Linear(width, CLASSES)

    @staticmethod
    def cut(x):
        """[samples, width, 8, 8] → [samples · 4 windows, 16, width]."""
        x = x.unflatten(3, (2, 4)).unflatten(2, (2, 4)).permute(0, 2, 4, 3, 5, 1)
        return x.flatten(3, 4).flatten(0, 2)

    def forward(self, x):
        samples = len(x)
        x = self.cut(self.first(x))
        q, k, v = (heads_of(part, 2) for part in self.qkv(x).chunk(3, dim=-1))
        x = x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.fc2(self.act(self.fc1(self.norm(x))))
        return self.head(x.unflatten(0, (samples, 4)).mean((1, 2)))

    def explicit(self, tape, x):
        x = self.cut(
            (self.first.weight[:, :, 0, 0] @ x.flatten(2)).unflatten(2, (8, 8)) + self.first.bias[:, None, None]
        )
        q, k, v = affine(self.qkv, x).chunk(3, dim=-1)
        x = x + attention(q, k, v, 2)
        x = x + affine(self.fc2, tape.act("fc1", affine(self.fc1, layer_norm(self.norm, x)), gelu))
        return affine(self.head, x.mean((0, 1))[None])


class TimeDistributed(nn.Module):
    """Every step is a sample to the layers: [samples · steps, features]."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(FEATURES, 9), nn.Linear(9, 8), nn.Linear(8 * STEPS, CLASSES)

    def forward(self, x):
        y = torch.tanh(self.fc2(F.relu(self.fc1(x.reshape(-1, FEATURES)))))
        return self.head(y.reshape(len(x), -1))

    def explicit(self, tape, x):
        y = tape.act("fc1", affine(self.fc1, x), positive_part)
        return affine(self.head, tape.act("fc2", affine(self.fc2, y), torch.tanh).flatten(1))


class StepsFirstMerged(nn.Module):
    """As above, the steps slowest: [steps · samples, features]."""

    def __init__(self):
        super().__init__()
        self.fc, self.head = nn.Linear(FEATURES, 9), nn.Linear(9, CLASSES)

    def forward(self, x):
        y = F.relu(self.fc(x.transpose(0, 1).reshape(-1, FEATURES)))
        return self.head(y.reshape(STEPS, len(x), -1).mean(dim=0))

    def explicit(self, tape, x):
        return affine(self.head, tape.act("fc", affine(self.fc, x), positive_part).mean(dim=1))


class HeadsMerged(nn.Module):
    """Heads are samples of their own to the activation: [samples · heads, steps, features]."""

    def __init__(self):
        super().__init__()
        self.part = nn.ModuleDict({"queries": nn.Linear(FEATURES, 8)})
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        y = F.gelu(heads_of(self.part["queries"](x), 2).flatten(0, 1))
        return self.head(y.unflatten(0, (len(x), 2)).transpose(1, 2).flatten(2).mean(dim=1))

    def explicit(self, tape, x):
        y = tape.act("model", heads_of(affine(self.part["queries"], x), 2), gelu)
        return affine(self.head, y.transpose(1, 2).flatten(2).mean(dim=1))


class Frames(nn.Module):
    """Convolutions on the frames of a film, [samples · frames, 1, 8, 8]."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Linear(3, CLASSES)

    def forward(self, x):
        y = F.relu(self.bn(self.conv(x.flatten(0, 1)[:, None])), inplace=True)
        return self.head(y.mean((2, 3)).unflatten(0, x.shape[:2]).mean(dim=1))

    def explicit(self, tape, x):
        y = tape.act("bn", normalised(self.bn, convolved(self.conv, x[0][:, None])), positive_part)
        return affine(self.head, y.mean((0, 2, 3))[None])


class SamplesLast(nn.Module):
    """Columns are samples."""

    def __init__(self):
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.zeros(9, FEATURES)), nn.Linear(9, CLASSES)

    def forward(self, x):
        return self.head(F.relu(self.weight @ x.T).T)

    def explicit(self, tape, x):
        return affine(self.head, tape.act("model", x @ self.weight.T, positive_part))


class OfItsOwn(nn.Module):
    """Activations on parameters alone, even with a row for each sample of the probe, are no local fields."""

    def __init__(self):
        super().__init__()
        self.places = nn.Parameter(torch.zeros(SAMPLES, 2))
        self.bias = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, FEATURES))
        self.gate, self.temperature = nn.Parameter(torch.zeros(SAMPLES)), nn.Parameter(torch.zeros(()))
        self.fc, self.head = nn.Linear(FEATURES, SAMPLES), nn.Linear(SAMPLES, CLASSES)

    def forward(self, x):
        y = torch.sigmoid(self.gate) * torch.tanh(self.fc(x + self.bias(self.places).mean(dim=0)))
        return self.head(y) / F.softplus(self.temperature)

    def explicit(self, tape, x):
        bias = affine(self.bias[2], positive_part(affine(self.bias[0], self.places))).mean(dim=0)
        y = sigmoid(self.gate) * tape.act("fc", affine(self.fc, x + bias), torch.tanh)
        return affine(self.head, y) / torch.log1p(torch.exp(self.temperature))


TRANSFORMERS = {
    "vision transformer": Family(VisionTransformer, images),
    "text encoder, relu": Family(TextEncoder, tokens),
    "text encoder, gelu, norm first": Family(lambda: TextEncoder("gelu", norm_first=True), tokens),
    "text encoder, steps first": Family(lambda: TextEncoder("gelu", batch_first=False), tokens),
    "text encoder, steps and norm first": Family(lambda: TextEncoder(batch_first=False, norm_first=True), tokens),
    "text encoder, padded": Family(lambda: TextEncoder(padded=True), padded_tokens),
    "text encoder, padded, steps first": Family(
        lambda: TextEncoder("gelu", batch_first=False, norm_first=True, padded=True), padded_tokens
    ),
    "own attention block": Family(AttentionBlock, sequences),
    "windows": Family(Windows, images),
    "time-distributed": Family(TimeDistributed, sequences),
}
AXES = {
    "steps and samples merged": Family(StepsFirstMerged, sequences),
    "samples and heads merged": Family(HeadsMerged, sequences),
    "frames of a film": Family(Frames, lambda: draw(SAMPLES, 4, 8, 8)),
    "samples last": Family(SamplesLast, features),
    "activations on parameters": Family(OfItsOwn, features),
}


# Recurrent ----------------------------------------------------------------------------------------------------------


WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class Recurrent(nn.Module):
    """A recurrent module of two layers, and a head on the mean of what it puts out, which is activated once more.

    With `last` the head reads the last step alone; with `start` the first state is not zero but depends on the sample.
    """

    def __init__(self, kind, batch_first=True, bidirectional=False, last=False, start=False, **options):
        super().__init__()
        self.rnn = kind(FEATURES, 4, 2, batch_first=batch_first, bidirectional=bidirectional, **options)
        self.batch_first, self.last, self.start = batch_first, last, start
        width = self.sides() * 4
        self.fc, self.head = nn.Linear(width, 9), nn.Linear(9, CLASSES)

    def sides(self):
        return 2 if self.rnn.bidirectional else 1

    def first_state(self, x):
        """[layers · directions, samples, 4]."""
        return torch.stack([x[:, 0, i % 3 : i % 3 + 4] for i in range(2 * self.sides())])

    def forward(self, x):
        state = None
        if self.start:
            h = self.first_state(x)
            state = (h, 2 * h) if isinstance(self.rnn, nn.LSTM) else h
        x = self.rnn(x if self.batch_first else x.transpose(0, 1), state)[0]
        if not self.batch_first:
            x = x.transpose(0, 1)
        return self.head(F.relu(self.fc(x[:, -1] if self.last else x.mean(dim=1))))

    def weights(self, layer, side):
        """Of the input, of the state, and their biases, which may be missing."""
        return [getattr(self.rnn, f"{kind}_l{layer}{side}", torch.zeros(())) for kind in WEIGHTS]

    def explicit(self, tape, x):
        step, number = {nn.LSTM: (lstm_step, 2), nn.GRU: (gru_step, 1), nn.RNN: (rnn_step, 1)}[type(self.rnn)]
        starts = self.first_state(x) if self.start else x.new_zeros(2 * self.sides(), 1, 4)
        made = 0
        for layer in range(2):
            outputs = []
            for side in ["", "_reverse"][: self.sides()]:
                names = ["rnn" if i == 0 else f"rnn:{i}" for i in range(made, made + number)]
                h = starts[made // number]
                c, out = 2 * h, [None] * STEPS
                made += number
                for t in reversed(range(STEPS)) if side else range(STEPS):
                    kind = getattr(self.rnn, "nonlinearity", None)
                    h, c = step(tape, names, (t,), self.weights(layer, side), x[:, t], h, c, kind)
                    out[t] = h
                outputs.append(torch.stack(out, dim=1))
            x = torch.cat(outputs, dim=-1)
        x = x[:, -1] if self.last else x.mean(dim=1)
        return affine(self.head, tape.act("fc", affine(self.fc, x), positive_part))


def lstm_gates(h):
    """i, f, g, o: the third is a tanh's."""
    i, f, g, o = h.chunk(4, dim=-1)
    return torch.cat([sigmoid(i), sigmoid(f), torch.tanh(g), sigmoid(o)], dim=-1)


def lstm_step(tape, names, at, weights, x, h, c, _=None):
    w, u, b, d = weights
    i, f, g, o = tape.act(names[0], x @ w.T + b + h @ u.T + d, lstm_gates, at).chunk(4, dim=-1)
    c = f * c + i * g
    return o * tape.act(names[1], c, torch.tanh, at), c


def gru_step(tape, names, at, weights, x, h, c, _=None):
    w, u, b, d = weights
    from_x, from_h = (x @ w.T + b).chunk(3, dim=-1), (h @ u.T + d).chunk(3, dim=-1)
    r = tape.act(names[0], from_x[0] + from_h[0], sigmoid, (*at, 0))
    z = tape.act(names[0], from_x[1] + from_h[1], sigmoid, (*at, 1))
    n = tape.act(names[0], from_x[2] + r * from_h[2], torch.tanh, (*at, 2))
    return (1 - z) * n + z * h, c


def rnn_step(tape, names, at, weights, x, h, c, nonlinearity):
    w, u, b, d = weights
    phi = {"tanh": torch.tanh, "relu": positive_part}[nonlinearity]
    return tape.act(names[0], x @ w.T + b + h @ u.T + d, phi, at), c


class CellLoop(nn.Module):
    """A cell in a loop of one's own: every step is a layer."""

    def __init__(self, kind):
        super().__init__()
        self.cell, self.head = kind(FEATURES, 4), nn.Linear(4, CLASSES)

    def forward(self, x):
        h = c = x.new_zeros(len(x), 4)
        for t in range(x.shape[1]):
            if isinstance(self.cell, nn.LSTMCell):
                h, c = self.cell(x[:, t], (h, c))
            else:
                h = self.cell(x[:, t], h)
        return self.head(h)

    def explicit(self, tape, x):
        step, number = {nn.LSTMCell: (lstm_step, 2), nn.GRUCell: (gru_step, 1), nn.RNNCell: (rnn_step, 1)}[
            type(self.cell)
        ]
        weights = [getattr(self.cell, kind) for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        h = c = x.new_zeros(1, 4)
        for t in range(STEPS):
            names = ["cell" if i == 0 else f"cell:{i}" for i in range(t * number, (t + 1) * number)]
            h, c = step(tape, names, (), weights, x[:, t], h, c, getattr(self.cell, "nonlinearity", None))
        return affine(self.head, h)


RECURRENT = {
    "LSTM": Family(lambda: Recurrent(nn.LSTM), sequences),
    "LSTM, steps first": Family(lambda: Recurrent(nn.LSTM, batch_first=False), sequences),
    "LSTM, both ways": Family(lambda: Recurrent(nn.LSTM, bidirectional=True), sequences),
    "LSTM, last step of both ways": Family(lambda: Recurrent(nn.LSTM, bidirectional=True, last=True), sequences),
    "GRU": Family(lambda: Recurrent(nn.GRU), sequences),
    "GRU, both ways, steps first": Family(lambda: Recurrent(nn.GRU, False, True), sequences),
    "RNN, tanh": Family(lambda: Recurrent(nn.RNN, bidirectional=True), sequences),
    "RNN, relu": Family(lambda: Recurrent(nn.RNN, batch_first=False, nonlinearity="relu"), sequences),
    "LSTM with a first state": Family(lambda: Recurrent(nn.LSTM, False, True, start=True), sequences),
    "GRU with a first state, no bias": Family(lambda: Recurrent(nn.GRU, start=True, bias=False), sequences),
    "LSTM cell": Family(lambda: CellLoop(nn.LSTMCell), sequences),
    "GRU cell": Family(lambda: CellLoop(nn.GRUCell), sequences),
    "RNN cell": Family(lambda: CellLoop(nn.RNNCell), sequences),
}
