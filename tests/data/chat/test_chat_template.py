"""The template's two forms, and exactly which tokens carry loss."""

import numpy as np
import pytest

from teukenjax.data.chat.messages import Conversation
from teukenjax.data.chat.sources import TOY, read_sources
from teukenjax.data.chat.template import Template, system_sentences
from teukenjax.errors import UserError
from teukenjax.recipe import ChatSource, SftConfig

TWO = Conversation("en", (("Who?", "I am."), ("Where?", "Here.")))
SENTENCE = "The assistant gives helpful and polite answers to the human's questions."
PLAIN = (
    f"System: A chat between a human and an artificial intelligence assistant. {SENTENCE}\n"
    "User: Who?\nAssistant: I am.</s>\nUser: Where?\nAssistant: Here.</s>"
)
# As the shipped template gives it: no blank after the first full stop, a newline at the end.
PUBLISHED = PLAIN.replace(". The", ".The") + "\n"


@pytest.fixture(scope="module")
def toy():
    found = read_sources(SftConfig(sources=(ChatSource(data="toy"),)))
    return [row.conversation for rows in found.train.values() for row in rows]


def test_the_toy_set_is_16_conversations_in_each_of_the_24_languages(toy):
    languages = [conversation.language for conversation in toy]
    assert {name: languages.count(name) for name in system_sentences()} == dict.fromkeys(
        system_sentences(), 16
    )
    assert {file.stem for file in TOY.glob("*.jsonl")} == set(system_sentences())
    assert 2 * sum(len(conversation.turns) for conversation in toy) == 960


def test_text_of_both_forms(tokenizer):
    assert Template(tokenizer).text(TWO) == PLAIN
    assert Template(tokenizer, "published").text(TWO) == PUBLISHED


def test_loss_is_on_answers_and_their_end_and_on_nothing_else(tokenizer):
    for form in ("plain", "published"):
        ids, weights = Template(tokenizer, form).encode(TWO)
        pieces = np.array(tokenizer.pieces)[ids]
        with_loss = ["".join(pieces[run]) for run in runs(weights == 1)]
        assert with_loss == ["▁I▁am.</s>", "▁Here.</s>"]
        assert set(weights.tolist()) == {0.0, 1.0}
        without = ["".join(pieces[run]).replace("▁", " ") for run in runs(weights == 0)]
        assert without[0].endswith("Who?<0x0A>Assistant:")
        start = " " if form == "published" else ""  # the quirk: a ▁ after each special piece
        assert without[1] == f"{start}<0x0A>User: Where?<0x0A>Assistant:"
        assert without[2:] == ([" <0x0A>"] if form == "published" else [])


def runs(mask: np.ndarray) -> list[np.ndarray]:
    """Indices where the mask holds, in runs."""
    places = np.flatnonzero(mask)
    return np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)


def test_parts_together_are_the_tokens_of_the_whole_text(tokenizer, toy):
    plain, published = Template(tokenizer), Template(tokenizer, "published")
    for conversation in toy:
        ids = plain.encode(conversation).ids.tolist()
        assert ids == tokenizer.encode(plain.text(conversation))
        ids = published.encode(conversation).ids.tolist()
        assert ids == tokenizer.encode_split(published.text(conversation))


def test_a_prompt_is_the_beginning_of_what_was_trained_on(tokenizer, toy):
    template = Template(tokenizer)
    for language, turns, _ in toy:
        ids, weights = template.encode(Conversation(language, turns))
        prompt = template.prompt(language, turns[-1][0], before=turns[:-1])
        assert ids[: len(prompt)].tolist() == prompt
        assert weights[len(prompt) :].all()
        assert not weights[len(prompt) - 1]


def test_the_published_prompt_ends_in_a_blank_that_training_never_saw(tokenizer):
    prompt = Template(tokenizer, "published").prompt("en", "Who?")
    assert tokenizer.pieces[prompt[-1]] == "▁"
    ids = Template(tokenizer, "published").encode(TWO).ids
    assert ids[: len(prompt) - 1].tolist() == prompt[:-1]
    assert ids[len(prompt) - 1] != prompt[-1]


def test_a_system_message_takes_the_sentences_place_or_is_refused(tokenizer):
    own = TWO._replace(system="Be brief.")
    assert Template(tokenizer).text(own).startswith("System: Be brief.\nUser: Who?")
    with pytest.raises(UserError, match="takes no system message"):
        Template(tokenizer, "published").text(own)


def test_unknown_forms_and_languages_are_refused(tokenizer):
    with pytest.raises(UserError, match="did you mean 'published'"):
        Template(tokenizer, "publishd")
    with pytest.raises(UserError, match="language 'xx' is unknown"):
        Template(tokenizer).prompt("xx", "?")
