import io
from collections import Counter

import pytest
from PIL import Image
from rich.console import Console

from teukenjax.data.inspect import inspect, plot, print_views, print_windows
from teukenjax.recipe import Recipe, validate

S = 16
STAGES = [
    {"tokens": 3000 * S, "temperature": 2.0},
    {"tokens": 5000 * S, "weights": {"de": 1, "mt": 1}},
]


@pytest.fixture
def recipe():
    def make(steps: int, **data) -> Recipe:
        model = {"width": 8, "layers": 1, "heads": 1, "kv_heads": 1, "head_dim": 8, "ffn": 8}
        values = {
            "out": "unused",
            "steps": steps,
            "model": model | {"context": S},
            "data": data,
            "batch": {"sequences": 10},
            "optimizer": {"name": "scion"},
        }
        return validate(Recipe, values, "test")

    return make


@pytest.fixture
def store(counting_store):
    return counting_store(de=100 * S + 1, fr=50 * S + 1, mt=10 * S + 1, ga=3)


def test_the_counts_are_those_of_the_stream(recipe, store):
    mixture = {"stages": STAGES, "max_epochs_of": {"mt": 20}}
    stream, views = inspect(recipe(800, mixture=mixture), store)
    rows = [stream.mixture.window(row)[0] for row in range(8000)]
    for view, part in zip(views, (rows[:3000], rows[3000:]), strict=True):
        counts = Counter(part)
        assert view.tokens == {name: S * count for name, count in counts.items()}
        windows = {"de": 100, "fr": 50, "mt": 10}
        assert view.epochs == {name: count / windows[name] for name, count in counts.items()}
    assert all(view.capped == {"mt"} for view in views)


def test_a_run_that_ends_early_sees_the_beginning(recipe, store):
    _, views = inspect(recipe(100, mixture={"stages": STAGES}), store)
    first, second = (sum(view.tokens.values()) for view in views)
    assert (first, second) == (1000 * S, 0)


def test_the_table_says_tokens_epochs_caps_and_what_is_left_out(recipe, store):
    mixture = {"stages": STAGES, "max_epochs_of": {"mt": 20}}
    _, views = inspect(recipe(800, mixture=mixture), store)
    screen = io.StringIO()
    print_views(Console(file=screen, width=200), views)
    lines = {line.split()[0]: line.split() for line in screen.getvalue().splitlines()}
    assert lines["all"] == ["all", "48,000", "80,000", "128,000"]
    maltese = sum(view.epochs["mt"] for view in views)
    assert 19 < maltese <= 20
    assert lines["mt"][-1] == f"{maltese:.2f}"
    assert "stage 1: held down by max_epochs: mt" in screen.getvalue()
    assert "stage 1: ga left out: 3 tokens, and one window takes 17" in screen.getvalue()
    assert "stage 2: fr left out: it has no weight" in screen.getvalue()


def test_windows_are_shown_as_text(recipe, store):
    stream, _ = inspect(recipe(5), store)
    screen = io.StringIO()
    print_windows(Console(file=screen, width=1000), stream, store.tokenizer(), 3)
    lines = screen.getvalue().splitlines()
    assert len(lines) == 3
    language, window = stream.mixture.window(2)
    assert lines[2].startswith(f"row 2: {language}, window {window}: ")


def test_of_a_mixture_that_ends_no_more_windows_are_shown_than_it_has(recipe, store):
    stream, _ = inspect(
        recipe(1, mixture={"stages": [{"tokens": 12 * S, "weights": {"mt": 1}}]}), store
    )
    screen = io.StringIO()
    print_windows(Console(file=screen, width=200), stream, store.tokenizer(), 20)
    assert len(screen.getvalue().splitlines()) == 12


def test_the_plot_is_an_image(recipe, store, tmp_path):
    _, views = inspect(recipe(800, mixture={"stages": STAGES}), store)
    plot(views, tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as image:
        assert image.width > 800
