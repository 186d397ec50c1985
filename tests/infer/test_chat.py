import io

import pytest
from rich.console import Console
from tiny import model_of, random_params, tiny_config

from teukenjax.data.chat.template import Template
from teukenjax.data.prepare import SAMPLE
from teukenjax.data.tokenizer import train_tokenizer
from teukenjax.errors import UserError
from teukenjax.infer import Generator, Sampling
from teukenjax.infer.chat import Chat, chat_ids, converse, without_blank
from teukenjax.infer.text import TextStream


@pytest.fixture(scope="module")
def generator():
    text = (SAMPLE / "de.txt").read_text(encoding="utf-8")
    config = tiny_config(vocab_size=900, context=256, layers=1)
    tokenizer = train_tokenizer([text], vocab_size=900)
    return Generator(model_of(config), random_params(config), tokenizer)


@pytest.fixture
def chat(generator):
    return Chat(generator, language="de", tokens=8, sampling=Sampling(temperature=0.0))


def test_a_chat_remembers_what_was_said(chat, generator):
    first = "".join(chat.ask("Wie geht es?"))
    assert first == first.lstrip()
    assert [message["content"] for message in chat.messages] == ["Wie geht es?", first.strip()]
    asked = [*chat.messages, {"role": "user", "content": "Und dir?"}]
    ids = chat_ids(generator.tokenizer, asked, "de")
    turns = (("Wie geht es?", first.strip()),)
    assert ids == Template(generator.tokenizer).prompt("de", "Und dir?", before=turns)


def test_special_pieces_in_an_answer_are_no_text_and_the_chat_goes_on(chat, monkeypatch):
    tokenizer = chat.generator.tokenizer
    said = [*sorted(tokenizer.special_ids), *tokenizer.encode("Ja")]
    monkeypatch.setattr(chat.generator, "stream", lambda *_, **__: iter(said))
    assert ["".join(chat.ask(question)) for question in ("Gut?", "Und dir?")] == ["Ja", "Ja"]


def test_a_special_piece_that_the_model_spelled_is_not_remembered(chat, monkeypatch):
    monkeypatch.setattr(chat.generator, "text", lambda *_, **__: iter(["Ja</s", ">"]))
    assert ["".join(chat.ask(question)) for question in ("Gut?", "Und dir?")] == ["Ja</s>"] * 2
    monkeypatch.setattr(chat.generator, "text", lambda *_, **__: iter(["</<s>s>"]))
    assert ["".join(chat.ask("Und?")) for _ in range(2)] == ["</<s>s>"] * 2


def test_a_chat_is_in_the_form_of_its_tuning(generator, monkeypatch):
    monkeypatch.setattr(generator, "form", "published")
    asked, given = [{"role": "user", "content": "Gut?"}], []
    monkeypatch.setattr(generator, "text", lambda ids, **_: given.append(ids) or iter(["Ja"]))
    list(Chat(generator, language="de", tokens=8, sampling=Sampling()).ask("Gut?"))
    published = Template(generator.tokenizer, "published").prompt("de", "Gut?")
    assert given == [published] != [chat_ids(generator.tokenizer, asked, "de")]


def test_a_conversation_that_is_too_long_is_refused_and_forgotten(chat):
    with pytest.raises(UserError, match="do not fit into a context of 256: begin another"):
        list(chat.ask("lang " * 200))
    assert chat.messages == []
    with pytest.raises(UserError, match="language 'dd'"):
        chat.speak("dd")


def test_a_terminal_has_questions_answers_and_commands(chat, monkeypatch):
    lines = iter(["Guten Tag", "/language", "/language sv", "/what", "x</s>", "/quit"])
    monkeypatch.setattr("builtins.input", lambda *_: next(lines))
    console = Console(file=io.StringIO(), width=200)
    converse(console, chat)
    printed = console.file.getvalue()
    assert chat.language == "sv"
    assert "new: 8 tokens" in printed
    assert "error: /language: of which code?" in printed
    assert printed.count("/quit ends") == 2
    assert "error: turn 1 holds the special piece '</s>'" in printed


def test_the_blank_before_an_answer_is_not_part_of_it():
    assert list(without_blank(iter(["", " ", " Ja", " nein"]))) == ["", "", "Ja", " nein"]


def test_a_prompt_may_end_inside_a_character(generator):
    tokenizer = generator.tokenizer
    *given, last = tokenizer.encode("€")  # of byte pieces
    text = TextStream(tokenizer, given)
    after = tokenizer.encode("€ a")[len(given) + 1 :]
    assert "".join([*map(text.push, [last, *after]), text.rest()]) == "€ a"


def test_text_comes_in_whole_characters_and_holds_back_what_may_be_a_stop(generator):
    tokenizer = generator.tokenizer
    given = tokenizer.encode("Das")
    ids = tokenizer.encode("Das € ist es.\nUser: x")[len(given) :]
    for stops, expected in (((), " € ist es.\nUser: x"), (("\nUser:",), " € ist es.")):
        text, pieces = TextStream(tokenizer, given, stops), []
        for token in ids:
            pieces.append(text.push(token))
            if text.stopped:
                break
        assert "".join([*pieces, "" if text.stopped else text.rest()]) == expected
        assert not any("\ufffd" in piece for piece in pieces)
