"""Sixteen conversations in two languages, short enough for the tiny context."""

import json
from pathlib import Path

ADAMW = {"name": "adamw", "learning_rate": 1e-2, "weight_decay": 0.0}
TURNS = {"en": ("Who are you?", "A model."), "mt": ("Min int?", "Mudell.")}


def write_chat(file: Path) -> Path:
    rows = []
    for language, (question, answer) in TURNS.items():
        for number in range(8):
            turn = {"role": "user", "content": f"{question} {number}"}
            messages = [{"role": "system", "content": "x"}, turn]
            messages.append({"role": "assistant", "content": answer})
            rows.append({"messages": messages, "language": language})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file
