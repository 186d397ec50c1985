"""Teuken's chat template as one string of Jinja, which every server takes.

The releases ship a dictionary of 24 templates, which servers such as vLLM refuse. Here the language
is an argument: ``tokenizer.apply_chat_template(messages, language="de")``, or over HTTP
``"chat_template_kwargs": {"language": "de"}``; without one it is English. What it renders is the
plain form of ``data.chat.template``, whose tokens are those that instruction tuning trains on.
"""

import json

from teukenjax.data.chat.template import system_sentences

DEFAULT_LANGUAGE = "en"

TEMPLATE = """\
{%- set sentences = SENTENCES -%}
{%- set language = (language | default('DEFAULT', true)) | lower -%}
{%- if language not in sentences -%}
{%- set known = sentences | join(', ') -%}
{{- raise_exception("language '" ~ language ~ "' is unknown: allowed: " ~ known) -}}
{%- endif -%}
{%- set said = namespace(system=sentences[language], turns=messages) -%}
{%- if messages and messages[0]['role'] | lower == 'system' -%}
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
{{- '\\nUser: ' ~ message['content'] | trim -}}
{%- else -%}
{{- '\\nAssistant: ' ~ message['content'] | trim ~ '</s>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '\\nAssistant:' -}}{%- endif -%}
"""


def chat_template() -> str:
    """The template, with the system sentences of all 24 languages in it."""
    sentences = json.dumps(system_sentences(), ensure_ascii=False)
    return TEMPLATE.replace("SENTENCES", sentences).replace("DEFAULT", DEFAULT_LANGUAGE)
