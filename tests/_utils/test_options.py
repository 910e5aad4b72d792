"""Shared options: signature, types, defaults and help come from one source, for functions and for classes."""

import inspect
import re
import typing

import pytest

from netdyn._utils.options import takes_options_of


def draw(canvas: str, colour: str = "red", width: "float | None" = None, *, seed: int = 0) -> str:
    """Draw a line.

    Args:
        canvas: What to draw on.
        colour: Colour of the line. It is red
            unless another one is given.
        width: Width of the line, in points.
        seed: Seed of the jitter.

    Returns:
        What was drawn.
    """
    return f"{canvas}: {colour} {width} {seed}"


class Pen:
    """A pen.

    Args:
        colour: Colour of the ink.
        width: Width of the tip.
    """

    def __init__(self, colour: str = "blue", width: float = 1.0) -> None:
        self.colour, self.width = colour, width


@takes_options_of(draw, without=("canvas",))
def draw_twice(first: str, second: str = "wall", **options: typing.Any) -> str:
    """Draw two lines.

    Args:
        first: What to draw on first.
        second: What to draw on then.
        options: As for draw.

    Returns:
        What was drawn.
    """
    return draw(first, **options) + ", " + draw(second, **options)


@takes_options_of(draw, without=("canvas",))
class Drawer:
    """Draws lines.

    Args:
        canvas: What to draw on.
        options: As for draw.

    Raises:
        ValueError: Never.
    """

    def __init__(self, canvas: str, **options: typing.Any) -> None:
        self.drawn = draw(canvas, **options)


def parameters(function):
    return {name: (p.annotation, p.default, p.kind) for name, p in inspect.signature(function).parameters.items()}


EMPTY, EITHER, NAMED = inspect.Parameter.empty, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
OPTIONS = {"colour": (str, "red", NAMED), "width": (float | None, None, NAMED), "seed": (int, 0, NAMED)}


def test_a_function_shows_the_options_with_types_and_defaults():
    own = {"first": (str, EMPTY, EITHER), "second": (str, "wall", EITHER)}
    assert parameters(draw_twice) == own | OPTIONS
    assert list(inspect.signature(draw_twice).parameters) == ["first", "second", "colour", "width", "seed"]
    assert inspect.signature(draw_twice).return_annotation in (str, "str")


def test_a_class_shows_the_options_and_stays_a_class():
    assert parameters(Drawer) == {"canvas": (str, EMPTY, EITHER)} | OPTIONS
    assert inspect.isclass(Drawer)
    assert isinstance(Drawer("paper"), Drawer)


@pytest.mark.parametrize("target", [draw_twice, Drawer.__init__], ids=["function", "class"])
def test_type_hints_are_those_of_the_options(target):
    hints = typing.get_type_hints(target)
    assert {name: hints[name] for name in OPTIONS} == {name: annotation for name, (annotation, *_) in OPTIONS.items()}


def test_options_arrive_and_defaults_are_the_sources():
    assert draw_twice("paper") == "paper: red None 0, wall: red None 0"
    assert draw_twice("paper", "sand", colour="blue", seed=3) == "paper: blue None 3, sand: blue None 3"
    assert Drawer("paper", width=2.5).drawn == "paper: red 2.5 0"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ({}, "Drawer(canvas='paper')"),
        ({"colour": "red", "width": None, "seed": 0}, "Drawer(canvas='paper')"),
        ({"colour": "blue", "seed": 3}, "Drawer(canvas='paper', colour='blue', seed=3)"),
        ({"width": len}, "Drawer(canvas='paper', width=len)"),
        (
            {"colour": [1, "a", object()], "width": (None, 2.5)},
            "Drawer(canvas='paper', colour=[1, 'a', <object>], width=(None, 2.5))",
        ),
    ],
)
def test_an_object_shows_the_options_that_differ_from_their_defaults(given, shown):
    assert repr(Drawer("paper", **given)) == shown


def test_a_derived_class_shows_its_own_name_and_the_options_that_arrived():
    class Red(Drawer):
        def __init__(self):
            super().__init__("wall", colour="dark red")

    assert repr(Red()) == "Red(canvas='wall', colour='dark red')"


def test_an_option_cannot_be_given_by_position():
    with pytest.raises(TypeError, match="positional"):
        draw_twice("paper", "sand", "blue")


def test_the_options_may_come_from_a_class():
    @takes_options_of(Pen)
    def write(text: str, **options):
        """Write.

        Args:
            text: What to write.
            options: As for Pen.
        """
        return Pen(**options).colour

    assert parameters(write)["width"] == (float, 1.0, NAMED)
    assert "self" not in parameters(write)
    assert write("x", colour="green") == "green"


def test_an_argument_of_ones_own_is_no_option():
    @takes_options_of(Pen)
    def write(colour: int = 3, **options):
        """Write.

        Args:
            colour: A number.
            options: As for Pen.
        """
        return colour, options

    assert parameters(write)["colour"] == (int, 3, EITHER)
    assert write(4, width=2.0) == (4, {"width": 2.0})
    assert inspect.getdoc(write).count("colour:") == 1


HELP = """Draw two lines.

Args:
    first: What to draw on first.
    second: What to draw on then.
    colour: Colour of the line. It is red
        unless another one is given.
    width: Width of the line, in points.
    seed: Seed of the jitter.

Returns:
    What was drawn."""


def test_the_help_of_a_function_describes_each_option_in_the_sources_words():
    assert inspect.getdoc(draw_twice) == HELP
    assert (draw_twice.__name__, draw_twice.__module__) == ("draw_twice", __name__)


def test_the_help_of_a_class_keeps_what_follows_the_arguments():
    lines = inspect.getdoc(Drawer).splitlines()
    assert lines[:3] == ["Draws lines.", "", "Args:"]
    assert lines[3] == "    canvas: What to draw on."
    assert lines[4:9] == HELP.splitlines()[5:10]
    assert lines[-2:] == ["Raises:", "    ValueError: Never."]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: draw_twice("paper", color="blue"),
            "draw_twice() got an unexpected keyword argument 'color'. The nearest are 'colour'.",
        ),
        (
            lambda: Drawer("paper", widht=2.0),
            "Drawer() got an unexpected keyword argument 'widht'. The nearest are 'width'.",
        ),
        (
            lambda: draw_twice("paper", zzz=1),
            "draw_twice() got an unexpected keyword argument 'zzz'. The nearest are 'first', 'second', 'colour', "
            "'width', 'seed'.",
        ),
        (
            lambda: Drawer("paper", zzz=1),
            "Drawer() got an unexpected keyword argument 'zzz'. The nearest are 'canvas', 'colour', 'width', 'seed'.",
        ),
    ],
    ids=["function", "class", "far from all, function", "far from all, class"],
)
def test_an_unknown_option_is_refused_with_the_nearest_names(call, text):
    with pytest.raises(TypeError, match=f"^{re.escape(text)}$"):
        call()


def test_a_missing_argument_is_pythons_own_error():
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'first'"):
        draw_twice()
