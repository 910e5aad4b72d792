"""The options: each is checked on its own, and all callables that take them share them."""

import dataclasses
import inspect
import re

import pytest

from netdyn import Config, DynamicsMonitor, Monitor, diagnose
from netdyn.engine.config import MEASURES

OPTIONS = {field.name: field for field in dataclasses.fields(Config)}
TAKERS = [diagnose, Monitor, DynamicsMonitor]


def parameters(taker):
    return inspect.signature(taker).parameters


def descriptions(taker):
    """Argument → its description in the docstring, in one line."""
    section = inspect.getdoc(taker).split("\nArgs:\n")[1].split("\n\n")[0]
    entries = re.findall(r"^    (\w+): (.+(?:\n     .+)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


@pytest.mark.parametrize("taker", TAKERS, ids=lambda taker: taker.__name__)
def test_a_callable_takes_every_option_with_the_same_default_type_and_description(taker):
    own, source = parameters(taker), parameters(Config)
    assert list(source) == list(OPTIONS) == list(descriptions(Config))
    assert set(OPTIONS) <= set(own)
    types = inspect.get_annotations(Config, eval_str=True)
    for name in OPTIONS:
        assert own[name].default == source[name].default, name
        assert own[name].annotation == types[name], name
        assert own[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert descriptions(taker)[name] == descriptions(Config)[name], name
    assert "options" not in own
    assert list(descriptions(taker)) == list(own)


def test_what_a_monitor_takes_the_callback_takes_but_the_loggers():
    ours, callbacks = parameters(Monitor), parameters(DynamicsMonitor)
    assert set(ours) - set(callbacks) == {"loggers"}
    assert set(callbacks) - set(ours) == {"every_n_epochs", "on_fit_ends"}
    # The callback reads a probe from the training data if none is given.
    for name in set(ours) - {"loggers", "probe", "val_probe"}:
        assert callbacks[name].default == ours[name].default, name
        assert callbacks[name].annotation == ours[name].annotation, name
        assert descriptions(DynamicsMonitor)[name] == descriptions(Monitor)[name], name


@pytest.mark.parametrize("taker", TAKERS, ids=lambda taker: taker.__name__)
def test_an_unknown_option_is_refused_with_the_nearest_ones(taker):
    given = {name: None for name, p in parameters(taker).items() if p.default is p.empty}
    text = re.escape(
        f"{taker.__name__}() got an unexpected keyword argument 'sample_ray'. The nearest are 'sample_rays'"
    )
    with pytest.raises(TypeError, match=f"^{text}"):
        taker(**given, sample_ray=3)


def test_the_defaults_are_sound_and_nothing_can_be_changed_afterwards():
    config = Config()
    assert config.measure == MEASURES
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 3
    with pytest.raises(TypeError, match="positional"):
        Config(["modes"])


def test_a_list_of_measures_is_the_same_as_a_tuple():
    """A configuration file gives a list, and a resumed run must find its own state."""
    assert Config(measure=[*MEASURES]) == Config()
    assert DynamicsMonitor(measure=[*MEASURES]).state_key == DynamicsMonitor().state_key


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"measure": ["mode"]}, "`measure` must be one of"),
        ({"layers": "fc1"}, "`layers` must be a list of names or globs"),
        ({"max_classes": 1}, "`max_classes` must be at least 2"),
        ({"alpha": 1.0}, "`alpha` must lie strictly between 0 and 1"),
        ({"weight_layers": "all"}, "`weight_layers` must be one of 'each'"),
        ({"low": 2.0, "high": 1.0}, "`low` must be smaller than `high`"),
        ({"batch_size": 0}, "`batch_size` must be at least 1"),
        ({"criterion": "right"}, "`criterion` must be a function"),
    ],
)
def test_what_does_not_fit_is_refused(options, text):
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(text)}"):
        Config(**options)
