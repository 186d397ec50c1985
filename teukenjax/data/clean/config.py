"""What a cleaning file can say: thresholds for each language, de-duplication, where it runs."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from teukenjax.recipe import PositiveFloat, Section

Share = Annotated[float, Field(ge=0, le=1)]
NGrams = dict[Annotated[str, Field(pattern="[1-9][0-9]?")], Share]  # words → largest share


class Rules(Section):
    """Thresholds for the documents of one language; none (and an empty mapping) is no limit.

    Repetition is measured as in Gopher (Rae et al. 2021, arXiv 2112.11446, table A1).
    """

    min_characters: PositiveInt | None = None
    max_characters: PositiveInt | None = None
    min_words: PositiveInt | None = None
    max_word_characters: PositiveFloat | None = None  # of the mean word
    script: str | None = None  # that letters are to be of, as Unicode names it: LATIN
    min_script: Share = 0.0  # smallest share of letters in it
    # The language identifier must find the document's own language, or one of ``also``.
    min_probability: Share | None = None
    also: tuple[str, ...] = ()  # languages that it takes this one for
    check_from_characters: PositiveInt = 200  # shorter documents are not identified
    duplicate_lines: Share | None = None  # largest share of lines that were there before
    duplicate_line_characters: Share | None = None
    duplicate_paragraphs: Share | None = None
    duplicate_paragraph_characters: Share | None = None
    # Of characters in the most frequent n-gram of words, and in all n-grams that were there before.
    top_ngrams: NGrams = Field(default_factory=dict)
    duplicate_ngrams: NGrams = Field(default_factory=dict)


class MinHash(Section):
    """Near duplicates: documents of which ``buckets`` bands of ``hashes`` hashes share one.

    The similarity found half of the time is about (1/buckets)^(1/hashes): 0.72 for 14 and 8.
    """

    ngram: PositiveInt = 5
    buckets: PositiveInt = 14
    hashes: PositiveInt = 8


class Local(Section):
    """On this machine."""

    kind: Literal["local"] = "local"
    workers: PositiveInt | None = None  # none: one for each CPU


class Slurm(Section):
    """As job arrays of a Slurm cluster; OUT must be on a file system that its nodes share."""

    kind: Literal["slurm"]
    partition: str
    time: str = "04:00:00"  # of one task
    cpus_per_task: PositiveInt = 1
    memory_gb_per_cpu: PositiveInt = 2
    qos: str = "normal"
    environment: str | None = None  # a shell line that makes Python and teukenjax available
    sbatch: dict[str, str] = Field(default_factory=dict)  # more options, such as account


class CleanConfig(Section):
    """The content of a file in ``configs/cleaning``."""

    default: Rules = Rules()
    languages: dict[str, Rules] = Field(default_factory=dict)  # what differs from the default
    exact: bool = True  # drop documents whose text is another's
    minhash: MinHash | None = MinHash()
    samples: Annotated[int, Field(ge=0)] = 20  # dropped documents kept for each rule and language
    run: Annotated[Local | Slurm, Field(discriminator="kind")] = Local()

    def rules(self, language: str) -> Rules:
        """The thresholds of one language."""
        own = self.languages.get(language, Rules())
        return self.default.model_copy(
            update={key: getattr(own, key) for key in own.model_fields_set}
        )
