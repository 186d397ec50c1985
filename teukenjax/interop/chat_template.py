"""Teuken's chat template as one string of Jinja, which every server takes.

The releases ship a dictionary of 24 templates, which servers such as vLLM refuse. Here the language
is an argument: ``tokenizer.apply_chat_template(messages, language="de")``, or over HTTP
``"chat_template_kwargs": {"language": "de"}``; without one it is English. What it renders has the
tokens that instruction tuning trains on (``data.chat.template``), in either form: where the
published one tokenises what follows an answer alone, a blank stands for the ▁ that begins it.
"""

import json

from teukenjax.data.chat.template import FORMS, opening_sentences

DEFAULT_LANGUAGE = "en"

TEMPLATE = """\
{%- set sentences = SENTENCES -%}
{%- set language = (language | default(DEFAULT, true)) | lower -%}
{%- if language not in sentences -%}
{%- set known = sentences | join(', ') -%}
{{- raise_exception("language '" ~ language ~ "' is unknown: allowed: " ~ known) -}}
{%- endif -%}
{%- set said = namespace(system=sentences[language], turns=messages) -%}
{%- if messages and messages[0]['role'] | lower == 'system' -%}
{%- if not OWN_SYSTEM -%}
{{- raise_exception('the published template takes no system message') -}}
{%- endif -%}
{%- set said.system = messages[0]['content'] | trim -%}
{%- set said.turns = messages[1:] -%}
{%- endif -%}
{{- 'System: ' ~ said.system -}}
{%- for message in said.turns -%}
{%- set role = message['role'] | lower -%}
{%- if role != ['user', 'assistant'][loop.index0 % 2] -%}
{{- raise_exception('turns do not alternate: user, assistant, user, ...; found ' ~ role) -}}
{%- endif -%}
{%- if role == 'user' -%}
{{- ('' if loop.first else AFTER_ANSWER) ~ '\\nUser: ' ~ message['content'] | trim -}}
{%- else -%}
{{- '\\nAssistant: ' ~ message['content'] | trim ~ '</s>' -}}
{%- if loop.last and CLOSING -%}{{- AFTER_ANSWER ~ CLOSING -}}{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '\\nAssistant:' ~ PROMPT_END -}}{%- endif -%}
"""


def chat_template(form: str = "plain") -> str:
    """The template in one of ``FORMS``, with the system sentences of all 24 languages in it."""
    wanted = FORMS[form]
    values = {
        "SENTENCES": opening_sentences(wanted),
        "DEFAULT": DEFAULT_LANGUAGE,
        "OWN_SYSTEM": wanted.own_system,
        "AFTER_ANSWER": " " if wanted.split else "",
        "CLOSING": wanted.closing,
        "PROMPT_END": wanted.prompt_end,
    }
    source = TEMPLATE
    for name, value in values.items():
        source = source.replace(name, json.dumps(value, ensure_ascii=False))
    return source
