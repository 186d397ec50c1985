"""The exported chat template, rendered as servers do, against the one that tuning trains on."""

import json

import jinja2
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer as Fast

from teukenjax.data.chat.messages import Conversation
from teukenjax.data.chat.template import Template, system_sentences
from teukenjax.data.tokenizer import Tokenizer
from teukenjax.interop.hf_tokenizer import write_tokenizer

TURNS = (("Größe?", "12 m²."), ("Und in Fuß?", "39 Fuß."))
MESSAGES = [
    {"role": role, "content": text}
    for turn in TURNS
    for role, text in zip(("user", "assistant"), turn, strict=True)
]


@pytest.fixture(scope="module")
def folder(tokenizer_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(tokenizer_model, out, context=4096)
    return out


@pytest.fixture(scope="module")
def published(tokenizer_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("published")
    write_tokenizer(tokenizer_model, out, context=4096, form="published")
    return out


@pytest.fixture(scope="module")
def render(folder):
    return rendering(folder)


def rendering(folder):
    """The template in an environment with the settings of transformers and vLLM."""

    def refuse(message):
        raise jinja2.TemplateError(message)

    source = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))["chat_template"]
    assert isinstance(source, str)
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    template = environment.from_string(source)
    return lambda messages, **options: template.render(messages=messages, **options)


@pytest.mark.parametrize("language", system_sentences())
def test_each_language_is_rendered_as_it_is_trained_on(
    render, folder, reference, tokenizer_model, language
):
    template = Template(Tokenizer(tokenizer_model))
    fast = Fast.from_file(str(folder / "tokenizer.json"))
    whole = Conversation(language, TURNS)
    text = render(MESSAGES, language=language)
    assert text == template.text(whole)
    assert fast.encode(text).ids == template.encode(whole).ids.tolist()
    asked = render(MESSAGES[:3], language=language.upper(), add_generation_prompt=True)
    (*before, (question, _)) = TURNS
    expected = template.prompt(language, question, before=tuple(before))
    assert fast.encode(asked).ids == expected


@pytest.mark.parametrize("language", system_sentences())
def test_the_published_form_has_the_tokens_it_is_trained_on(published, tokenizer_model, language):
    template = Template(Tokenizer(tokenizer_model), "published")
    fast, render = Fast.from_file(str(published / "tokenizer.json")), rendering(published)
    whole = template.encode(Conversation(language, TURNS)).ids.tolist()
    assert fast.encode(render(MESSAGES, language=language)).ids == whole
    asked = render(MESSAGES[:3], language=language, add_generation_prompt=True)
    expected = template.prompt(language, TURNS[1][0], before=TURNS[:1])
    assert fast.encode(asked).ids == expected
    assert expected != Template(Tokenizer(tokenizer_model)).prompt(
        language, TURNS[1][0], before=TURNS[:1]
    )


def test_the_published_form_takes_no_system_message(published):
    with pytest.raises(jinja2.TemplateError, match="takes no system message"):
        rendering(published)([{"role": "system", "content": "Sei kurz."}, *MESSAGES[:1]])


def test_without_a_language_it_is_english(render):
    assert render(MESSAGES[:1]).startswith(f"System: {system_sentences()['en']}\nUser: Größe?")


def test_a_system_message_stands_in_the_place_of_the_sentence(render):
    messages = [{"role": "system", "content": " Sei kurz. "}, *MESSAGES[:1]]
    text = render(messages, language="de", add_generation_prompt=True)
    assert text == "System: Sei kurz.\nUser: Größe?\nAssistant:"


@pytest.mark.parametrize(
    ("messages", "options", "message"),
    [
        (MESSAGES, {"language": "nn"}, "language 'nn' is unknown: allowed: bg, cs"),
        (MESSAGES[1:], {}, "turns do not alternate"),
        ([*MESSAGES[:1], *MESSAGES[:1]], {}, "found user"),
    ],
)
def test_what_cannot_be_rendered_is_refused(render, messages, options, message):
    with pytest.raises(jinja2.TemplateError, match=message):
        render(messages, **options)
