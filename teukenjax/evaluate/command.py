"""What ``teukenjax eval`` does: bits per byte, benchmarks, language fidelity, gaps."""

import collections
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from teukenjax.data.chat.sources import read_sources
from teukenjax.data.documents import DocumentReader, find_files
from teukenjax.data.location import Location
from teukenjax.data.store import TokenStore
from teukenjax.data.stream import Stream
from teukenjax.errors import UserError, disk_errors
from teukenjax.evaluate import gaps as gap_report
from teukenjax.evaluate.answers import Answers
from teukenjax.evaluate.fidelity import detector, fidelity, print_fidelity, total
from teukenjax.evaluate.in_training import import_harness
from teukenjax.evaluate.suite import Questions, load_suite, read_scores
from teukenjax.evaluate.tables import (
    Rows,
    by_language,
    markdown,
    means,
    models_of,
    table_of_languages,
    table_of_models,
)
from teukenjax.evaluate.text import print_scores, score_text, write_scores
from teukenjax.infer.layout import decoding_layout
from teukenjax.recipe import ChatSource, SftConfig, load
from teukenjax.run import LoadedRun, load_run, write_atomically

ANSWER_TOKENS = 128


def text(
    console: Console, run: Path, data: Path, *, out: Path | None, batch_tokens: int, gaps: bool
) -> None:
    """Bits per byte of each language of ``data``; with ``gaps``, which of them trail and why."""
    loaded = load_run(run)
    share = token_shares(loaded) if gaps else {}
    scores = score_text(loaded, data, batch_tokens=batch_tokens)
    print_scores(console, scores)
    out = out or loaded.path / f"eval-{data.resolve().stem}-{loaded.step}.json"
    write_scores(loaded, data, scores, out)
    console.print(f"{out}: the same as JSON", highlight=False)
    if gaps:
        words: dict[str, int] = collections.Counter()
        for document in DocumentReader(find_files(data)):
            words[document.language] += len(document.text.split())
        fertility = {name: score.tokens / words[name] for name, score in scores.items()}
        bits = {name: score.bits_per_byte for name, score in scores.items()}
        gap_report.print_gaps(console, gap_report.gaps(bits, share, fertility))


def token_shares(run: LoadedRun) -> dict[str, float]:
    """Language → its share of the tokens that a run has been trained on.

    Raises:
      UserError: when the run was not trained on a token store, or it is not there any more.
    """
    recipe = run.recipe
    if recipe.sft is not None:
        base = load(recipe.sft.base).out if recipe.sft.base_is_recipe else recipe.sft.base
        told = "it began with none" if base is None else f"give the run that it began with, {base}"
        raise UserError(f"--gaps: {run.path} was tuned on conversations: {told}")
    place = Location(recipe.data.store or recipe.out / "store")
    if not place.exists():
        raise UserError(f"--gaps: the token store of {run.path} is not at {place}")
    mixture = Stream.of(recipe, TokenStore.open(place)).mixture
    rows: dict[str, int] = collections.Counter()
    for stage in mixture.seen(run.step * recipe.batch.sequences):
        rows.update(stage)
    everything = sum(rows.values()) or 1
    return {name: count / everything for name, count in rows.items()}


def suite(
    console: Console,
    run: Path,
    name: str,
    *,
    folder: Path | None,
    limit: int | None,
    against: list[Path],
    out: Path | None,
    batch_tokens: int,
) -> None:
    """A suite's benchmarks: tables on the screen; JSON, Markdown and two pictures beside them."""
    config = load_suite(name)
    others = {k: v for path in against for k, v in models_of(read_scores(path), str(path)).items()}
    benchmarks, harness = import_harness()
    questions = Questions(config, folder)
    questions.load()  # what is missing is said before a large model is read
    loaded = load_run(run)
    lm = harness.TeukenLM(loaded.model, loaded.params, loaded.tokenizer, batch_tokens=batch_tokens)
    scores = benchmarks.run_suite(lm, questions, limit=limit)
    shown = by_language(scores, config)
    model = f"{loaded.path.name} (step {loaded.step})"
    shots = {task: one.shots for task, one in config.tasks.items()}
    content = {"model": model, "suite": name, "limit": limit, "shots": shots}
    content |= {"cut_prompts": lm.cut_prompts, "shown": shown, "scores": scores}
    out = out or loaded.path / f"eval-{Path(name).stem}-{loaded.step}.json"
    _report(console, content, others, out)
    if lm.cut_prompts:
        console.print(lm.cut_said, highlight=False)


def _report(console: Console, content: dict[str, Any], others: dict, out: Path) -> None:
    from teukenjax.evaluate import figures

    shown, model = content["shown"], content["model"]
    models = others | {model: means(shown)}
    common = [task for task in shown if all(task in found for found in others.values())]
    tables = table_of_models(models, common or list(shown)), table_of_languages(shown)
    for rows in tables:
        _print_rows(console, rows)
    shots = ", ".join(f"{task} {n}" for task, n in content["shots"].items())
    limit = "" if content["limit"] is None else f"; the first {content['limit']} questions of each"
    languages = sorted({language for found in shown.values() for language in found})
    note = f"{content['suite']}; means over {' '.join(languages)}; shots: {shots}{limit}"
    with disk_errors(out):
        write_atomically(out, json.dumps(content, indent=1))
        text = "\n".join((f"# {model}\n\n{note}\n", *map(markdown, tables)))
        write_atomically(out.with_suffix(".md"), text)
    figures.heat_map(shown, f"{model}: {Path(content['suite']).stem}", out.with_suffix(".png"))
    figures.bars(models, common or list(shown), out.with_name(f"{out.stem}-models.png"))
    console.print(f"{note}\n{out}, .md, .png, -models.png: the same in files", highlight=False)


def _print_rows(console: Console, rows: Rows) -> None:
    table = Table(*rows[0], box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows[1:]:
        table.add_row(*row)
    console.print(table)


def faithful(
    console: Console, run: Path, source: str, *, out: Path | None, batch_tokens: int
) -> None:
    """How often the model answers in the language that it is asked in."""
    detector()  # before anything is loaded
    given = source if source == "toy" else Path(source)
    rows = read_sources(SftConfig(sources=(ChatSource(data=given),)))
    asked = [row for some in rows.train.values() for row in some]
    if not asked:
        raise UserError(f"--fidelity {source}: holds no conversation")
    loaded = load_run(run, layout_of=decoding_layout)
    ask = Answers(loaded.model, loaded.params, loaded.tokenizer, form=loaded.recipe.chat_form)
    answers = ask(asked, tokens=ANSWER_TOKENS, batch_tokens=batch_tokens)
    found = fidelity(answers)
    print_fidelity(console, found)
    out = out or loaded.path / f"eval-fidelity-{Path(source).stem}-{loaded.step}.json"
    content = {
        "step": loaded.step, "questions": source, "share": total(found).share,
        "languages": {name: one._asdict() for name, one in found.items()},
        "answers": [answer._asdict() for answer in answers],
    }  # fmt: skip
    with disk_errors(out):
        write_atomically(out, json.dumps(content, indent=1, ensure_ascii=False))
    console.print(f"{out}: the same as JSON, with all answers", highlight=False)
