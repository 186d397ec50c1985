"""The cleaning of a corpus, as datatrove runs it: rules, exact duplicates, near duplicates.

Each stage is one pipeline of datatrove, which divides its tasks over processes or Slurm jobs,
marks those that are complete, and leaves them out when the same command is given again.

    OUT/text/          the clean documents, RANK.jsonl.zst: what `data prepare` reads
    OUT/report.json    kept and dropped, by rule and language
    OUT/dropped/       a sample of each rule's documents, RULE.jsonl
    OUT/work/          what the stages hand on to each other; removed at the end
    OUT/logs/          datatrove's logs and marks of completion
"""

import contextlib
import json
import os
import re
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor
from datatrove.pipeline.dedup import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.dedup.exact_dedup import (
    ExactDedupConfig,
    ExactDedupFilter,
    ExactDedupSignature,
    ExactFindDedups,
)
from rich.console import Console

from teukenjax.data.begun import fingerprint_files, save, working_in
from teukenjax.data.clean.config import CleanConfig, Local
from teukenjax.data.clean.dropped import Dropped, gather
from teukenjax.data.clean.steps import LanguageRules, ReadFile, ReadText, Words, WriteFile
from teukenjax.data.documents import DEFAULT_FIELDS, Fields, find_files, refuse_within

Stage = tuple[str, list[Any], int]  # name, steps, tasks


def clean(
    text: str | Path,
    out: Path,
    config: CleanConfig,
    *,
    console: Console,
    fields: Fields = DEFAULT_FIELDS,
) -> dict[str, Any] | None:
    """Cleans the documents of ``text`` into ``out``; the same call goes on after a kill.

    One task reads whole files, so a corpus in many files is divided best.

    Returns:
      The content of report.json; none when Slurm will do it later.

    Raises:
      UserError: for missing or damaged text, an ``out`` that lies in it, was begun with other
        options or is being written, or a disk that is full.
    """
    files = find_files(text)
    refuse_within(out, text)
    options = {
        "config": config.model_dump(mode="json", exclude={"run"}),
        "fields": asdict(fields),
        "files": fingerprint_files(files),
    }
    with working_in(out, options, on=str(out)):
        if not (out / "report.json").is_file():
            stages = _stages(files, out, config, fields)
            _run(stages, out, config, console)
    report = out / "report.json"
    return json.loads(report.read_text(encoding="utf-8")) if report.is_file() else None


def _stages(files: list[Path], out: Path, config: CleanConfig, fields: Fields) -> list[Stage]:
    work, tasks = out / "work", len(files)

    def dropped(rule: str) -> Dropped:
        return Dropped(work / "dropped" / rule, rule, config.samples)

    rules = [
        ReadText(files, fields, dropped("broken line")),
        LanguageRules(config, dropped("rules")),
        WriteFile(work / "ruled"),
    ]
    stages: list[Stage] = [("rules", rules, tasks)]
    last = work / "ruled"
    if config.exact:
        how = ExactDedupConfig(content_getter=_text, only_dedup_in_index=False)
        places = (str(work / "exact" / "signatures"), str(work / "exact" / "duplicates"))
        filtered = [ReadFile(last), ExactDedupFilter(places[1], how, dropped("exact duplicate"))]
        stages += [
            ("exact: hashes", [ReadFile(last), ExactDedupSignature(places[0], how)], tasks),
            ("exact: duplicates", [ExactFindDedups(*places, how)], 1),
            ("exact: dropping", [*filtered, WriteFile(work / "unique")], tasks),
        ]
        last = work / "unique"
    if config.minhash:
        how = MinhashConfig(config.minhash.ngram, config.minhash.buckets, config.minhash.hashes)
        places = [str(work / "minhash" / name) for name in ("signatures", "buckets", "remove")]
        signed = [ReadFile(last), MinhashDedupSignature(places[0], how, language=Words())]
        filtered = [ReadFile(last), MinhashDedupFilter(places[2], dropped("near duplicate"))]
        stages += [
            ("minhash: hashes", signed, tasks),
            ("minhash: buckets", [MinhashDedupBuckets(*places[:2], config=how)], how.num_buckets),
            ("minhash: clusters", [MinhashDedupCluster(*places[1:], config=how)], 1),
            ("minhash: dropping", [*filtered, WriteFile(work / "distinct")], tasks),
        ]
        last = work / "distinct"
    return [*stages, ("report", [Report(out, last, config.samples)], 1)]


def _text(document: Document) -> str:
    return document.text


class Report:
    """The last stage: gathers the counts, moves the text to its place, removes the work."""

    def __init__(self, out: Path, text: Path, samples: int):
        self._out = out
        self._text = text
        self._samples = samples

    def __call__(self, _, rank: int = 0, world_size: int = 1) -> None:
        """Writes report.json last: when it is there, everything is."""
        out, text = self._out, self._out / "text"
        if self._text.exists():
            shutil.rmtree(text, ignore_errors=True)
            self._text.rename(text)
        kept: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for file in sorted(text.glob("*.json")):
            for language, (documents, size) in json.loads(file.read_text()).items():
                kept[language][0] += documents
                kept[language][1] += size
        counts, samples = gather(sorted((out / "work").glob("dropped/*")), self._samples)
        (out / "dropped").mkdir(exist_ok=True)
        by_rule = defaultdict(list)
        for (rule, _language), rows in samples.items():
            by_rule[rule] += rows
        for rule, rows in by_rule.items():
            lines = (json.dumps(row | {"rule": rule}, ensure_ascii=False) + "\n" for row in rows)
            name = re.sub(r"\W+", "_", rule)
            (out / "dropped" / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        dropped: dict[str, dict[str, int]] = defaultdict(dict)
        for (rule, language), count in sorted(counts.items()):
            dropped[rule][language] = count
        report = {
            "kept": {
                name: {"documents": n, "bytes": size} for name, (n, size) in sorted(kept.items())
            },
            "dropped": dropped,
        }
        save(out / "report.json", json.dumps(report, indent=1, ensure_ascii=False).encode())
        shutil.rmtree(out / "work")


def _run(stages: list[Stage], out: Path, config: CleanConfig, console: Console) -> None:
    previous = None
    for number, (name, steps, tasks) in enumerate(stages, start=1):
        logs = str(out / "logs" / f"{number}-{re.sub(r'[^a-z]+', '-', name)}")
        console.print(f"{number}/{len(stages)} {name}: {tasks} task(s)", highlight=False)
        if isinstance(config.run, Local):
            workers = min(config.run.workers or os.cpu_count() or 1, tasks)
            executor = LocalPipelineExecutor(steps, tasks=tasks, workers=workers, logging_dir=logs)
            with _told_in(out / "logs" / "datatrove.log"):
                executor.run()
        else:
            previous = _submitted(steps, tasks, name, logs, config, previous)
    if previous is not None:
        previous.run()  # which submits those that it depends on first
        console.print(f"submitted; {out}/report.json is written last", highlight=False)


def _submitted(
    steps: list[Any],
    tasks: int,
    name: str,
    logs: str,
    config: CleanConfig,
    previous: SlurmPipelineExecutor | None,
) -> SlurmPipelineExecutor:
    run = config.run
    return SlurmPipelineExecutor(
        steps,
        tasks=tasks,
        time=run.time,
        partition=run.partition,
        cpus_per_task=run.cpus_per_task,
        mem_per_cpu_gb=run.memory_gb_per_cpu,
        qos=run.qos,
        job_name=f"clean {name}",
        env_command=run.environment,
        sbatch_args=run.sbatch,
        logging_dir=logs,
        depends=previous,
    )


@contextlib.contextmanager
def _told_in(path: Path) -> Iterator[None]:
    """Standard error of this process and its children goes to a file: datatrove talks a lot."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stderr.flush()
    own = os.dup(2)
    with path.open("ab") as log:
        os.dup2(log.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(own, 2)
            os.close(own)


def print_report(console: Console, report: dict[str, Any]) -> None:
    """A row for each rule: documents dropped, by language."""
    dropped, kept = report["dropped"], report["kept"]
    total = Counter({rule: sum(languages.values()) for rule, languages in dropped.items()})
    for rule, count in total.most_common():
        languages = Counter(dropped[rule]).most_common()
        text = ", ".join(f"{language} {n:,}" for language, n in languages)
        console.print(f"{rule}: {count:,} ({text})", highlight=False)
    documents = sum(row["documents"] for row in kept.values())
    size = sum(row["bytes"] for row in kept.values())
    console.print(
        f"kept {documents:,} documents, {size:,} bytes, in {len(kept)} languages; "
        f"dropped {total.total():,}",
        highlight=False,
    )
