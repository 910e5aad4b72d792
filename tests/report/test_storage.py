"""Reports as JSON files: equal after a round trip, and what is wrong with a file of another origin."""

import copy
import json
import pickle
from dataclasses import replace

import pytest
import torch

from clouds import network, probe, trained
from made_reports import INF, NAN, basin, layer, report
from netdyn import Report, diagnose
from netdyn.basins.change import Change, Influences
from netdyn.basins.coverage import Covered
from netdyn.linear.characteristic import Subnetwork
from netdyn.report.storage import decoded, encoded


@pytest.fixture(scope="module")
def real():
    x, target = probe()
    held_out = {"val_inputs": x[:50], "val_target": target[:50]}
    return diagnose(trained(network(), x, target), x, target, weight_layers="each", **held_out)


NONE = dict.fromkeys(("class_intervals", "class_sizes", "realised", "influences")) | {"noise_at": ()}
INFLUENCES = Influences("0 1 2", torch.ones(1), torch.ones(1, 3), torch.arange(3))
UNITS = torch.tensor([[3]])
WHOLE = report(
    layer('<script>"fc1"|`'),
    layer("fc2", opt=NAN, gradient=-INF),
    sample=basin(INF, (1.25, INF), **NONE | {"radii": None, "influences": INFLUENCES}),
    weight=basin(0.0, (NAN, NAN), **NONE | {"per_layer": {"a.b": 0.5, "c": INF}, "noise_at": ("emb",)}),
    val_accuracy=0.1,
    coverage=Covered(0.5, NAN, 1e-300),
    sample_change=Change(-0.1, -0.2, 0.0),
    characteristic_maps=torch.tensor([[1 + 2j, -0.5j]]),
    subnetwork=Subnetwork(
        "fc1", torch.tensor([[3]]), torch.tensor([[0.1]], dtype=torch.bfloat16), torch.zeros(1, 0, 2)
    ),
    notes=("one", "zwei: ä"),
    measured={"seed": "0"},
)


def tensors(value, place=""):
    """Every tensor in a report, by where it is."""
    if isinstance(value, torch.Tensor):
        return {place: value}
    parts = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    if isinstance(value, list | tuple):
        parts = dict(enumerate(value))
    return {name: found for key, part in parts.items() for name, found in tensors(part, f"{place}.{key}").items()}


@pytest.mark.parametrize("which", ["real", "whole", "nothing"])
def test_a_report_is_equal_after_a_round_trip(which, real, tmp_path):
    one = {"real": real, "whole": WHOLE, "nothing": report()}[which]
    one.save(tmp_path / "report.json")
    again = Report.load(str(tmp_path / "report.json"))
    assert again == one
    assert again is not one
    assert again.measured == one.measured
    before, after = tensors(one), tensors(again)
    assert list(before) == list(after)
    for place, value in before.items():
        assert value.dtype == after[place].dtype, place
        assert torch.equal(value.nan_to_num(7, 8, 9), after[place].nan_to_num(7, 8, 9)), place
    assert str(again) == str(one)
    assert again.scalars() == one.scalars()
    assert again.to_dict(arrays=True) == one.to_dict(arrays=True)


def test_the_file_is_json_without_words_of_python(tmp_path):
    WHOLE.save(tmp_path / "report.json")

    def refuse(word):
        raise AssertionError(word)

    content = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert set(content) == {"format", "version", "report"}
    assert content["report"]["layers"][1]["opt_fraction"] == "nan"
    assert content["report"]["sample_basin"]["interval"] == [1.25, "inf"]


def test_every_kind_of_number_survives():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128):
        values = torch.tensor([0.1, -0.0, 3e-5, NAN, INF, -INF], dtype=dtype)
        again = decoded(torch.Tensor, json.loads(json.dumps(encoded(values), allow_nan=False)), "x")
        assert again.dtype == dtype
        assert repr(again) == repr(values)
    for values in (torch.tensor(True), torch.tensor([[2**63 - 1], [-(2**63)]]), torch.zeros(0, 3, dtype=torch.int16)):
        again = decoded(torch.Tensor, json.loads(json.dumps(encoded(values))), "x")
        assert again.dtype == values.dtype
        assert torch.equal(again, values)


def test_reports_are_equal_if_all_their_numbers_are():
    assert report(layer(opt=NAN)) == report(layer(opt=NAN))
    assert hash(report(layer())) == hash(report(layer()))
    assert report(layer()) != report(layer(opt=0.25))
    assert report(layer()) != report(replace(layer(), order_index=torch.ones(1)))
    assert report(layer()) != report(replace(layer(), order_index=torch.zeros(0, dtype=torch.float64)))
    assert report(measured={"seconds": "1"}) == report(measured={"seconds": "2"})
    assert report() != "report"


def test_the_plain_form_has_arrays_only_if_asked_for(real):
    def kinds(value):
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return {type(value), *(kind for part in parts for kind in kinds(part))}

    short, long = real.to_dict(), real.to_dict(arrays=True)
    assert "order_index" not in short["layers"][0]
    assert "radii" not in short["weight_basin"]
    assert long["layers"][0]["order_index"] == real.layers[0].order_index.tolist()
    assert long["sample_basin"]["per_class"] == real.sample_basin.per_class.tolist()
    assert len(json.dumps(short)) < 6000
    assert torch.Tensor not in kinds(long)
    assert json.loads(real.to_json()) == short
    assert json.loads(real.to_json(arrays=True)) == long


CONTENT = {"format": "netdyn report", "version": 1, "report": encoded(WHOLE)}
DROP = object()


def changed(path, value):
    """The content of a file with another value at one place."""
    content = copy.deepcopy(CONTENT)
    *way, last = path
    at = content
    for step in way:
        at = at[step]
    if value is DROP:
        del at[last]
    else:
        at[last] = value
    return content


R = "report"
NUMBER = "must be a number, or one of 'nan', 'inf', '-inf'"
INDEX = (R, "layers", 0, "order_index")
OF_INDEX = "`report.layers[0].order_index"
BROKEN = [
    ([], "`format` must be 'netdyn report', got []."),
    (None, "`format` must be 'netdyn report', got None."),
    (changed(["format"], "weights"), "`format` must be 'netdyn report', got 'weights'."),
    (changed(["version"], 2), "`version` must be 1 or less (a later netdyn reads later ones), got 2."),
    (changed(["version"], "1"), "`version` must be a whole number, got '1'."),
    (changed([R], [1]), "`report` must be an object, got [1]."),
    (changed([R, "samples"], 2.5), "`report.samples` must be a whole number, got 2.5."),
    (changed([R, "samples"], True), "`report.samples` must be a whole number, got True."),
    (changed([R, "samples"], DROP), "`report.samples` is missing."),
    (changed([R, "surprise"], 1), "`report` has no field 'surprise'."),
    (
        changed([R, "accuracy"], "high"),
        f"`report.accuracy` {NUMBER}, got 'high'.",
    ),
    (changed([R, "accuracy"], False), f"`report.accuracy` {NUMBER}, got False."),
    (changed([R, "accuracy"], None), f"`report.accuracy` {NUMBER}, got None."),
    (changed([R, "layers"], {}), "`report.layers` must be a list, got {}."),
    (changed([R, "layers", 1, "name"], 3), "`report.layers[1].name` must be a text, got 3."),
    (changed([R, "layers", 1, "name"], DROP), "`report.layers[1].name` is missing."),
    (changed([R, "notes", 0], ["x"]), "`report.notes[0]` must be a text, got ['x']."),
    (changed([R, "weight_basin", "interval"], [0.5]), "`report.weight_basin.interval` must be a list of 2, got [0.5]."),
    (
        changed([R, "weight_basin", "per_layer", "c"], [0]),
        f"`report.weight_basin.per_layer.c` {NUMBER}, got [0].",
    ),
    (
        changed([*INDEX, "dtype"], "sin"),
        f"{OF_INDEX}.dtype` must be the name of a dtype such as 'float64', got 'sin'.",
    ),
    (changed([*INDEX, "dtype"], 3), f"{OF_INDEX}.dtype` must be a text, got 3."),
    (changed([*INDEX, "shape"], [-1]), f"{OF_INDEX}.shape` must be a list of sizes, got [-1]."),
    (
        changed([*INDEX, "shape"], [2]),
        f"{OF_INDEX}.values` must be 2 numbers, as many as the shape has, got 0.",
    ),
    (changed([*INDEX, "values"], "0"), f"{OF_INDEX}.values` must be a list, got '0'."),
    (changed([*INDEX], 0.5), f"{OF_INDEX}` must be an object, got 0.5."),
    (
        changed([*INDEX], {"dtype": "int8", "shape": [1], "values": [10**30]}),
        f"{OF_INDEX}.values` must be numbers that fit into int8, got 'larger ones'.",
    ),
    (changed([R, "coverage", "own"], DROP), "`report.coverage.own` is missing."),
    (
        changed([R, "subnetwork", "layer"], list(range(100))),
        f"`report.subnetwork.layer` must be a text, got {str(list(range(100)))[:57]}....",
    ),
]


@pytest.mark.parametrize(("content", "message"), BROKEN, ids=[message[:60] for _, message in BROKEN])
def test_what_is_wrong_with_a_file_is_told_by_its_field(content, message, tmp_path):
    path = tmp_path / "other.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError) as error:  # noqa: PT011
        Report.load(path)
    assert str(error.value) == f"{path} is no report that can be read: {message}"


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe\x00", pickle.dumps({"report": 1}), b"[" * 100_000, b'{"format": '],
    ids=["empty", "cut off", "no text", "pickle", "too deep", "half"],
)
def test_what_is_no_json_is_refused(content, tmp_path):
    path = tmp_path / "other.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"is not JSON, as `Report\.save` writes it: "):
        Report.load(path)


def test_a_field_that_a_file_of_an_earlier_version_lacks_has_its_default(tmp_path):
    path = tmp_path / "report.json"
    path.write_text(json.dumps(changed([R, "notes"], DROP)), encoding="utf-8")
    assert Report.load(path).notes == ()


def test_a_number_beyond_a_float_is_infinite(tmp_path):
    assert decoded(float, 10**400, "x") == INF
    assert decoded(float, -(10**400), "x") == -INF
