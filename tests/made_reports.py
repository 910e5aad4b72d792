"""Reports of made-up numbers, and what they look like printed."""

import dataclasses
import math
from html.parser import HTMLParser

import torch

from netdyn import LayerReport, Report
from netdyn.basins.curve import falling_curve
from netdyn.basins.result import BasinResult

NAN, INF = math.nan, math.inf


def layer(name="fc1", opt=0.5, gradient=1.5, tail=0.875, dead=0.0, units=40, z=9.0):
    return LayerReport(
        name,
        units,
        units,
        opt_fraction=opt,
        npt_fraction=1 - opt,
        order_z=z,
        opt_chance=0.125,
        positive_fraction=0.75,
        order_mean=0.25,
        dead_fraction=dead,
        constant_fraction=0.0,
        rpd_gradient=gradient,
        transfer_order=0.7,
        affine_defect=0.0,
        tail_accuracy=tail,
        tail_change=tail - 0.875,
        tail_error=0.005,
    )


def basin(radius=0.5, interval=(0.25, 1.0), **changes):
    plain = dict.fromkeys((field.name for field in dataclasses.fields(BasinResult)), 0.5)
    plain |= {"radius": radius, "interval": interval, "level": 0.95, "clean": 0.875, "censored": 0.125, "high": 10.0}
    plain |= {"per_class": torch.ones(5), "noise_classes": None, "per_sample": None, "per_layer": None}
    plain |= {"radii": torch.tensor([radius]), "curve": falling_curve(0.9, [1.0], [0.5])}
    return BasinResult(**plain | changes)


def report(*layers, sample=None, weight=None, **changes):
    plain = {"accuracy": 0.875, "val_accuracy": None, "samples": 200, "num_classes": 5, "alpha": 0.05}
    return Report(layers=layers, sample_basin=sample, weight_basin=weight, **plain | changes)


def lines(*layers, **changes):
    """The printed lines after the verdict."""
    return str(report(*layers, **changes)).splitlines()[1:]


class Reader(HTMLParser):
    """The tags in use, whether each is closed, and the text between them."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag != "meta":  # the one that has no end
            self.open.append(tag)
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
