"""Lightning's CSVLogger: numbers in its table, figures as files beside it."""

import csv

import matplotlib.figure
from lightning.pytorch.loggers import CSVLogger

from netdyn.loggers.csv import CSV
from netdyn.loggers.find import destination


def test_figures_are_files_beside_the_table(tmp_path):
    logger = CSVLogger(tmp_path, name="run", version=0)
    there = destination(logger)
    assert type(there) is CSV
    for step in (0, 5):
        there.scalars({"a/b": step / 2}, step)
        figure = matplotlib.figure.Figure(figsize=(1, 1))
        figure.subplots().plot([0, 1])
        there.figures({"basin/curves": figure}, step)
    logger.save()
    table = list(csv.DictReader((tmp_path / "run" / "version_0" / "metrics.csv").read_text().splitlines()))
    assert [(row["step"], float(row["a/b"])) for row in table] == [("0", 0.0), ("5", 2.5)]
    files = sorted((tmp_path / "run" / "version_0" / "netdyn" / "basin" / "curves").iterdir())
    assert [file.name for file in files] == ["step_00000000.png", "step_00000005.png"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)


def test_the_newest_text_is_a_file_beside_the_table(tmp_path):
    logger = CSVLogger(tmp_path, name="run", version=0, prefix="mine")
    for step in (0, 5):
        destination(logger).text("0_netdyn/verdict", ["healthy: all is well.", "Layer α is <b>."], step)
    (file,) = (tmp_path / "run" / "version_0").rglob("*.txt")
    assert file.parts[-3:] == ("netdyn", "mine-0_netdyn", "verdict.txt")
    assert file.read_text(encoding="utf-8") == "step 5: healthy: all is well.\n- Layer α is <b>.\n"
