"""The exact calls that a SummaryWriter gets, and the event file read back."""

import html.parser
import io
import json
import re
import shlex
import time

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard import plugin_util
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin
from tensorboard.plugins.custom_scalar.layout_pb2 import Category, Chart, MarginChartContent
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout as LayoutMessage
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import custom_scalars

from netdyn._utils.drawing import pixels
from netdyn.engine.config import MEASURES as EVERYTHING
from netdyn.loggers.find import destination
from netdyn.loggers.tensorboard import LightningTensorBoard, TensorBoard, last_layout, layout, opened
from netdyn.report.figures.maps import heat_map
from netdyn.tags import SCALARS


class Writer:
    """Keeps the calls it gets."""

    def __init__(self):
        self.calls = []

    def add_histogram(self, tag, values, global_step=None, **options):
        self.calls.append((tag, type(values).__name__, values.tolist(), global_step, options))


def test_a_writer_gets_every_histogram_at_the_step():
    writer = Writer()
    TensorBoard(writer).histograms({"a/b": torch.tensor([1.0, 2.0]), "c/d": torch.tensor([3.0])}, 7)
    options = {"bins": 64}
    assert writer.calls == [("a/b", "ndarray", [1.0, 2.0], 7, options), ("c/d", "ndarray", [3.0], 7, options)]


def test_nothing_to_show_nothing_written():
    writer = Writer()
    TensorBoard(writer).histograms({}, 7)
    assert writer.calls == []


@pytest.mark.parametrize(("prefix", "before"), [("", ""), ("mine", "mine-"), ("a-b", "a-b-")])
def test_a_lightning_logger_puts_its_prefix_before_a_tag(prefix, before, tmp_path):
    logger = TensorBoardLogger(tmp_path, prefix=prefix)
    assert LightningTensorBoard(logger).prefix == before
    assert LightningTensorBoard(logger).writer is logger.experiment


def test_the_writer_of_a_folder_is_closed_and_a_given_one_is_not(tmp_path):
    own = opened(tmp_path / "own")
    given = TensorBoard(SummaryWriter(str(tmp_path / "given")))
    for receiver in (own, given):
        receiver.scalars({"a": 1.0}, 3)
        receiver.close()
    assert own.writer.file_writer is None
    assert given.writer.file_writer is not None
    given.writer.close()
    for name in ("own", "given"):
        events = EventAccumulator(str(tmp_path / name))
        events.Reload()
        assert [(event.step, event.value) for event in events.Scalars("a")] == [(3, 1.0)]


def read_back(folder):
    events = EventAccumulator(str(folder), size_guidance={"histograms": 0})
    events.Reload()
    return {tag: events.Histograms(tag) for tag in events.Tags()["histograms"]}


def test_histograms_are_read_back_from_the_event_file(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="run", version=0)
    values = torch.linspace(-1, 1, 201)
    for step in (0, 3, 10):
        destination(logger).histograms({"modes/order_index/net.0": values * (step + 1)}, step)
    logger.finalize("success")
    histograms = read_back(tmp_path / "run" / "version_0")["modes/order_index/net.0"]
    assert [event.step for event in histograms] == [0, 3, 10]
    assert [event.histogram_value.num for event in histograms] == [201] * 3
    assert [event.histogram_value.max for event in histograms] == [1, 4, 11]
    assert [event.histogram_value.min for event in histograms] == [-1, -4, -11]
    assert [event.histogram_value.sum for event in histograms] == pytest.approx([0] * 3, abs=1e-4)


def test_indices_near_one_are_told_apart(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="run", version=0)
    destination(logger).histograms({"modes/order_index/fc": torch.tensor([0.93] * 5 + [0.99] * 7 + [-1.0] * 3)}, 1)
    logger.finalize("success")
    (event,) = read_back(tmp_path / "run" / "version_0")["modes/order_index/fc"]
    assert [count for count in event.histogram_value.bucket if count] == [3, 5, 7]


@pytest.mark.parametrize("values", [[0.25], [0.0] * 50, [-1.0] * 9 + [1.0], [1e-40, 2.0], [-38.0, 38.0]])
def test_values_of_the_kinds_we_send_can_be_written(tmp_path, values):
    logger = TensorBoardLogger(tmp_path, name="run", version=0)
    destination(logger).histograms({"a/b": torch.tensor(values)}, 1)
    logger.finalize("success")
    (event,) = read_back(tmp_path / "run" / "version_0")["a/b"]
    assert event.histogram_value.num == len(values)


def test_the_prefix_of_a_logger_stands_before_histograms_too(tmp_path):
    """Lightning puts it before scalars, with a hyphen; one run's tags belong together."""
    logger = TensorBoardLogger(tmp_path, name="run", version=0, prefix="mine")
    destination(logger).histograms({"a/b": torch.ones(3)}, 1)
    logger.log_metrics({"a/c": 1.0}, 1)
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "run" / "version_0"))
    events.Reload()
    assert (events.Tags()["histograms"], events.Tags()["scalars"]) == (["mine-a/b"], ["mine-a/c"])


# Figures -------------------------------------------------------------------------------------------------------------


class ImageWriter:
    """Keeps the images it gets."""

    def __init__(self):
        self.calls = []

    def add_image(self, tag, image, global_step=None, dataformats="CHW"):
        self.calls.append((tag, torch.from_numpy(image), global_step, dataformats))


def figure(value=0.5):
    return heat_map(torch.tensor([[value, 1.0]]), ["a"], [0, 1], "share", (0.0, 1.0))


def test_a_writer_gets_every_figure_as_an_image_at_the_step():
    writer = ImageWriter()
    TensorBoard(writer).figures({"modes/map": figure(), "linear/map": figure(0.2)}, 7)
    assert [(tag, step, form) for tag, _, step, form in writer.calls] == [
        ("modes/map", 7, "HWC"),
        ("linear/map", 7, "HWC"),
    ]
    assert torch.equal(writer.calls[0][1], pixels(figure()))
    assert torch.equal(writer.calls[1][1], pixels(figure(0.2)))


def test_figures_are_read_back_from_the_event_file(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="run", version=0, prefix="mine")
    for step in (0, 3):
        destination(logger).figures({"modes/map": figure(step / 3)}, step)
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "run" / "version_0"), size_guidance={"images": 0})
    events.Reload()
    assert events.Tags()["images"] == ["mine-modes/map"]
    images = events.Images("mine-modes/map")
    assert [event.step for event in images] == [0, 3]
    for event, step in zip(images, (0, 3), strict=True):
        shown = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
        assert np.array_equal(shown, pixels(figure(step / 3)))


# The layout ----------------------------------------------------------------------------------------------------------

THEIRS = {"mine": {"losses": ["Multiline", ["loss/.*"]], "band": ["Margin", ["a", "a-", "a+"]]}}


def shown(folder):
    """What TensorBoard itself would show for a folder of runs: the answer of its plugin."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(folder))
    plugin = CustomScalarsPlugin(TBContext(data_provider=provider, logdir=str(folder)))
    answer = json.loads(plugin.layout_impl(RequestContext(), "") or "{}")
    charts = {}
    for category in answer.get("category", []):
        for chart in category["chart"]:
            if "margin" in chart:
                kind = "Margin", [[s["value"], s["lower"], s["upper"]] for s in chart["margin"]["series"]]
            else:
                kind = "Multiline", chart["multiline"]["tag"]
            charts[category["title"], chart["title"]] = kind
    return charts


def tensorboard_logger(tmp_path, **options):
    return TensorBoardLogger(tmp_path, name="run", version=0, **options)


def basin_of(folder, category, space):
    """The chart of a basin in the layout that is shown; None if there is none."""
    return next(
        (c for (group, title), c in shown(folder).items() if group == category and title.startswith(space)), None
    )


def layouts_written(folder):
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    return len(events.Tensors("custom_scalars__config__"))


def test_tensorboard_shows_our_charts(tmp_path):
    logger = tensorboard_logger(tmp_path)
    destination(logger).arrange(EVERYTHING, "")
    logger.finalize("success")
    lines = {
        ("accuracy", "accuracy: training and validation probe"): ["^probe/accuracy$", "^probe/val_accuracy$"],
        ("accuracy", "batch-norm gap: accuracy gained with batch statistics"): ["^batchnorm/gap$"],
        ("layers", "OPT: share of order-preserving units, per layer"): ["^modes/opt_fraction/"],
        ("layers", "RPD gradient: order of the samples, per layer"): ["^modes/rpd_gradient/"],
        ("layers", "dead units: share per layer"): ["^modes/dead_fraction/"],
        ("layers", "phase index: order rises with depth (1) or falls (−1)"): ["^phase/index$"],
        ("linear part", "linear tail: accuracy without the activations from a layer on"): ["^linear/tail_accuracy/"],
        ("cost", "overhead: time of measuring per time of training"): ["^netdyn/overhead$"],
    }
    margins = {
        ("basins", f"{space} basin: noise on the {where} that it withstands, with 95 % interval"): [
            f"basin/{space}/{end}" for end in ("radius", "low", "high")
        ]
        for space, where in {"sample": "inputs (σ per component)", "weight": "weights (standard deviations)"}.items()
    }
    # A line would be smoothed.
    margins["linear part", "functional depth: first layer of the linear tail"] = ["linear/functional_depth"] * 3
    expected = {(f"netdyn {group}", title): ("Multiline", tags) for (group, title), tags in lines.items()}
    expected |= {(f"netdyn {group}", title): ("Margin", [tags]) for (group, title), tags in margins.items()}
    assert shown(tmp_path) == expected


@pytest.mark.parametrize(
    ("measure", "categories"),
    [
        ((), ["accuracy", "cost"]),
        (("modes",), ["accuracy", "layers", "cost"]),
        (("linear", "maps"), ["accuracy", "linear part", "cost"]),
        (("sample_basin",), ["accuracy", "basins", "cost"]),
    ],
)
def test_charts_of_what_is_not_measured_are_left_out(measure, categories):
    assert list(layout(measure)) == [f"netdyn {name}" for name in categories]
    (only,) = layout(("sample_basin",))["netdyn basins"]
    assert only.startswith("sample basin")
    assert len(layout(("batchnorm",))["netdyn accuracy"]) == len(layout(())["netdyn accuracy"]) + 1


def test_the_layout_shows_tags_that_are_sent_by_default():
    known = {tag.name for tag in SCALARS if tag.detail != "full"}
    for charts in layout(EVERYTHING).values():
        for kind, tags in charts.values():
            plain = {re.sub(r"[\\^$]", "", tag) if kind == "Multiline" else tag for tag in tags}
            assert {f"{tag}<layer>" if tag.endswith("/") else tag for tag in plain} <= known


def test_charts_of_layers_show_all_layers_and_no_other_tag():
    pattern = layout(EVERYTHING, "a+b/")["netdyn layers (a+b)"]["OPT: share of order-preserving units, per layer"][1][0]
    assert re.match(pattern, "a+b/modes/opt_fraction/encoder.0.fc:1")
    assert not re.match(pattern, "modes/opt_fraction/encoder.0.fc:1")
    assert not re.match(pattern, "a+b/modes/opt_mean")


@pytest.mark.parametrize("before", ["", "ema/", "mine-ema/", "a+b/"])
def test_prefixes_stand_before_tags_and_name_the_category(before):
    ours = layout(("sample_basin",), before)
    (margin,) = next(charts for title, charts in ours.items() if "basins" in title).values()
    assert margin[1][0] == f"{before}basin/sample/radius"
    accuracy = next(charts for title, charts in ours.items() if "accuracy" in title)
    (accuracy, _) = accuracy["accuracy: training and validation probe"][1]
    assert re.match(accuracy, f"{before}probe/accuracy")
    assert not re.match(accuracy, f"{before}probe/accuracy_too")
    assert not re.match(accuracy, f"x{before}probe/accuracy")
    assert all(title.endswith(f" ({before[:-1]})") == bool(before) for title in ours)


def test_loggers_prefix_and_ours_are_joined(tmp_path):
    logger = tensorboard_logger(tmp_path, prefix="mine")
    destination(logger).arrange(("sample_basin",), "ema/")
    logger.finalize("success")
    (series,) = basin_of(tmp_path, "netdyn basins (mine-ema)", "sample")[1]
    assert series == [f"mine-ema/basin/sample/{end}" for end in ("radius", "low", "high")]


THEIRS_SHOWN = {("mine", "losses"): ("Multiline", ["loss/.*"]), ("mine", "band"): ("Margin", [["a", "a-", "a+"]])}


def test_the_users_layout_is_kept_when_it_came_first(tmp_path):
    logger = tensorboard_logger(tmp_path)
    logger.experiment.add_custom_scalars(THEIRS)
    destination(logger).arrange(EVERYTHING, "")
    logger.finalize("success")
    charts = shown(tmp_path)
    assert list(charts)[:2] == list(THEIRS_SHOWN)
    assert len(charts) == 13
    assert THEIRS_SHOWN.items() <= charts.items()


def test_a_layout_that_comes_later_is_never_replaced_and_ours_join_it_at_the_next_call(tmp_path):
    logger = tensorboard_logger(tmp_path)
    destination(logger).arrange(EVERYTHING, "")
    logger.experiment.add_custom_scalars(THEIRS)
    logger.experiment.flush()
    assert shown(tmp_path) == THEIRS_SHOWN
    destination(logger).arrange(EVERYTHING, "")
    logger.finalize("success")
    charts = shown(tmp_path)
    assert len(charts) == 13
    assert THEIRS_SHOWN.items() <= charts.items()


def test_what_is_there_is_not_written_again(tmp_path):
    logger = tensorboard_logger(tmp_path)
    for _ in range(3):
        destination(logger).arrange(EVERYTHING, "")
    logger.finalize("success")
    assert layouts_written(tmp_path / "run" / "version_0") == 1


def test_a_resumed_run_finds_the_layout_in_its_earlier_file(tmp_path):
    first = tensorboard_logger(tmp_path)
    first.experiment.add_custom_scalars(THEIRS)
    first.finalize("success")
    time.sleep(1.1)  # event files are named after the second
    second = tensorboard_logger(tmp_path)
    destination(second).arrange(EVERYTHING, "")
    destination(second).arrange(EVERYTHING, "")
    second.finalize("success")
    assert len(list((tmp_path / "run" / "version_0").glob("*tfevents*"))) == 2
    assert THEIRS_SHOWN.items() <= shown(tmp_path).items()
    assert layouts_written(tmp_path / "run" / "version_0") == 2


def test_what_is_measured_may_change_on_the_way(tmp_path):
    logger = tensorboard_logger(tmp_path)
    destination(logger).arrange(EVERYTHING, "")
    destination(logger).arrange(("sample_basin",), "")
    logger.finalize("success")
    assert basin_of(tmp_path, "netdyn basins", "weight") is None
    assert basin_of(tmp_path, "netdyn basins", "sample") is not None


def test_two_monitors_stand_beside_each_other(tmp_path):
    logger = tensorboard_logger(tmp_path)
    destination(logger).arrange(("sample_basin",), "")
    destination(logger).arrange(("sample_basin",), "ema/")
    logger.finalize("success")
    for category in ("netdyn basins", "netdyn basins (ema)"):
        assert basin_of(tmp_path, category, "sample") is not None


def test_charts_with_several_margins_keep_them_all(tmp_path):
    logger = tensorboard_logger(tmp_path)
    series = [MarginChartContent.Series(value=v, lower=v + "-", upper=v + "+") for v in ("a", "b")]
    chart = Chart(title="bands", margin=MarginChartContent(series=series))
    message = LayoutMessage(category=[Category(title="mine", chart=[chart])])
    # The writer itself makes margins of one series only; other programs' may have more.
    summary = custom_scalars({})
    summary.value[0].tensor.string_val[0] = message.SerializeToString()
    logger.experiment._get_file_writer().add_summary(summary)
    destination(logger).arrange(EVERYTHING, "")
    logger.finalize("success")
    charts = shown(tmp_path)
    assert charts["mine", "bands"] == ("Margin", [["a", "a-", "a+"]])
    assert charts["mine", "bands (2)"] == ("Margin", [["b", "b-", "b+"]])


def test_layouts_are_found_among_large_and_unfinished_records(tmp_path):
    logger = tensorboard_logger(tmp_path)
    noise = torch.randint(0, 256, (3, 900, 900), generator=torch.Generator().manual_seed(0)).byte()
    logger.experiment.add_image("noise", noise)
    logger.experiment.add_custom_scalars(THEIRS)
    logger.experiment.add_image("noise", noise)
    logger.experiment.flush()
    (file,) = (tmp_path / "run" / "version_0").glob("*tfevents*")
    assert file.stat().st_size > 4e6
    whole = file.read_bytes()
    for cut in (0, 1, 5, 100, 10000):
        file.write_bytes(whole[: len(whole) - cut])
        assert last_layout(file.parent) == THEIRS
    logger.finalize("success")


@pytest.mark.parametrize("content", [b"", b"\x00", b"\xff" * 40, b"custom_scalars__config__" * 9])
def test_files_that_are_no_event_files_hold_no_layout(tmp_path, content):
    (tmp_path / "events.out.tfevents.0").write_bytes(content)
    assert last_layout(tmp_path) == {}


@pytest.mark.parametrize("log_dir", [None, "s3://bucket/run", "nowhere"])
def test_nothing_is_written_where_nothing_can_be_read_back(log_dir):
    class Remote:
        def add_custom_scalars(self, layout):
            raise AssertionError("a layout was written")

        def flush(self):
            raise AssertionError("there is nothing to flush")

    writer = Remote()
    writer.log_dir = log_dir
    TensorBoard(writer).arrange(EVERYTHING, "")


def test_the_table_of_tags_is_a_text_in_the_event_file(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="run", version=0)
    destination(logger).about(SCALARS, "mine/")
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "run" / "version_0"))
    events.Reload()
    (event,) = events.Tensors("mine/netdyn/about/text_summary")
    lines = event.tensor_proto.string_val[0].decode().splitlines()
    assert lines[:2] == ["| tag | unit | what it is |", "|---|---|---|"]
    assert len(lines) == 2 + len(SCALARS)
    assert f"| `mine/{SCALARS[0].name}` | {SCALARS[0].unit} | {SCALARS[0].meaning} |" in lines


# Texts ---------------------------------------------------------------------------------------------------------------

NASTY = [
    "<script>alert(1)</script>",
    "a|b*c_d_",
    "`x` [y](http://z) ![i](j)",
    "# 1. a & b &lt; \\\\ \\*",
    "*a* __b__ {c}",
    "two\nlines",
]


class Letters(html.parser.HTMLParser):
    """The tags of a page, and its letters."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.tags, self.letters = [], ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.letters += data


@pytest.mark.parametrize("name", NASTY)
def test_names_stand_for_themselves_on_the_page(name, tmp_path):
    """As TensorBoard makes a page of a text."""
    with SummaryWriter(str(tmp_path)) as writer:
        TensorBoard(writer).text("0_netdyn/verdict", [f"healthy: {name}.", f"Layer {name} is dead.", f"{name} too."], 3)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    (event,) = events.Tensors("0_netdyn/verdict/text_summary")
    page = Letters(plugin_util.markdown_to_safe_html(event.tensor_proto.string_val[0]))
    name = " ".join(name.split())
    expected = [f"healthy: {name}.", f"Layer {name} is dead.", f"{name} too."]
    assert [line for line in page.letters.split("\n") if line] == expected
    assert page.tags == ["p", "strong", "ul", "li", "li"]


@pytest.mark.parametrize(("name", "command"), [("runs", "{}"), ("my run's", "'{}'")])
def test_the_command_shows_the_folder_of_the_writer(name, command, tmp_path):
    own = opened(tmp_path / name)
    shown = str(tmp_path / name).replace("'", "'\"'\"'")
    assert own.page == "tensorboard --logdir " + command.format(shown)
    assert shlex.split(own.page)[-1] == str(tmp_path / name)
    own.close()


def test_a_writer_without_a_folder_has_no_page():
    assert TensorBoard(Writer()).page == ""
