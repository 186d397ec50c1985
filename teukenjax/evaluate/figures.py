"""Pictures of benchmark scores: a heat map of languages and tasks, and bars for models."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from teukenjax.picture import save_figure

DPI = 120


def heat_map(shown: Mapping[str, Mapping[str, float]], title: str, path: Path) -> None:
    """One cell a language and task; colours are of each task by itself, best to worst."""
    languages = sorted({language for found in shown.values() for language in found})
    values = np.array([[found.get(x, np.nan) for found in shown.values()] for x in languages])
    low, high = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
    shades = (values - low) / np.where(high > low, high - low, 1)
    size = (1.6 + 1.1 * len(shown), 1.2 + 0.3 * len(languages))
    figure = Figure(figsize=size, dpi=DPI)
    axis = figure.subplots()
    axis.imshow(shades, cmap="YlGn", aspect="auto", alpha=0.6)
    axis.set_xticks(range(len(shown)), list(shown), rotation=30, ha="right")
    axis.set_yticks(range(len(languages)), languages)
    for (row, column), value in np.ndenumerate(values):
        said = "n/a" if np.isnan(value) else f"{value:.3f}"
        axis.text(column, row, said, ha="center", va="center", fontsize=8)
    axis.set_title(title, fontsize=10)
    figure.tight_layout()
    save_figure(figure, path)


def bars(models: Mapping[str, Mapping[str, float]], tasks: list[str], path: Path) -> None:
    """A group of bars a task, a bar a model: means over languages."""
    figure = Figure(figsize=(4.2 + 1.8 * len(tasks), 4), dpi=DPI)
    axis = figure.subplots()
    width = 0.8 / len(models)
    for number, (name, found) in enumerate(models.items()):
        places = np.arange(len(tasks)) + (number - (len(models) - 1) / 2) * width
        axis.bar(places, [found.get(task, np.nan) for task in tasks], width, label=name)
    axis.set_xticks(range(len(tasks)), tasks)
    axis.set_ylabel("mean over languages")
    axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    axis.grid(axis="y", alpha=0.3)
    figure.tight_layout()
    save_figure(figure, path)
