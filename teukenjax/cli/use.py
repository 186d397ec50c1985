"""The verbs of trained models: from and to Hugging Face, and text out of them."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from teukenjax.cli.options import RunPath, console
from teukenjax.errors import UserError

use = typer.Typer()

Tokens = Annotated[int, typer.Option(min=1, help="At most this many.")]
Temperature = Annotated[float, typer.Option(help="0 is greedy.")]
TopK = Annotated[int, typer.Option(help="0 is all.")]
TopP = Annotated[float, typer.Option()]
Penalty = Annotated[float, typer.Option(help="Above 1: tokens come again less often.")]
Seed = Annotated[int, typer.Option()]
Language = Annotated[str, typer.Option(help="Whose system sentence opens a conversation.")]


@use.command("import")
def import_(
    folder: Annotated[Path, typer.Argument(metavar="HF_DIR", help="Safetensors, no pickles.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A run directory to make.")],
) -> None:
    """Make a run of a Hugging Face directory; a call that was killed goes on."""
    from teukenjax.interop import import_hf

    import_hf(folder, out, progress=sys.stderr.isatty())
    console().print(f"{out}: every verb takes it as RUN", highlight=False)


@use.command()
def export(
    run: RunPath,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A directory to make.")],
    dtype: Annotated[
        str | None, typer.Option(help="bf16, fp16 or fp32; default: as imported, else bf16.")
    ] = None,
    shard_size: Annotated[str, typer.Option(help="Of one file, such as 500MB.")] = "5GB",
) -> None:
    """Write what stock Hugging Face transformers load; a call that was killed goes on."""
    from teukenjax.interop import export_run
    from teukenjax.interop.sizes import parse_size

    shard_bytes = parse_size(shard_size)
    export_run(run, out, dtype=dtype, shard_bytes=shard_bytes, progress=sys.stderr.isatty())
    console().print(f"{out}: AutoModelForCausalLM and AutoTokenizer load it", highlight=False)


@use.command()
def generate(
    run: RunPath,
    prompt: Annotated[list[str], typer.Option(help="A text to continue; several are a batch.")],
    tokens: Tokens = 100,
    temperature: Temperature = 0.7,
    top_k: TopK = 50,
    top_p: TopP = 0.95,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = 0,
) -> None:
    """Continue texts; what comes is printed as it comes."""
    from teukenjax.infer import Sampling
    from teukenjax.infer.terminal import load_generator, print_continuations

    how = Sampling(temperature, top_k, top_p, repetition_penalty, seed)
    print_continuations(load_generator(run), prompt, tokens=tokens, sampling=how)


@use.command()
def chat(
    run: RunPath,
    language: Language = "en",
    tokens: Tokens = 512,
    temperature: Temperature = 0.7,
    top_k: TopK = 50,
    top_p: TopP = 0.95,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = 0,
) -> None:
    """Talk with a model that was tuned on Teuken's chat template."""
    from teukenjax.infer import Sampling
    from teukenjax.infer.chat import Chat, converse
    from teukenjax.infer.terminal import load_generator

    how = Sampling(temperature, top_k, top_p, repetition_penalty, seed)
    converse(console(), Chat(load_generator(run), language=language, tokens=tokens, sampling=how))


@use.command()
def serve(
    run: RunPath,
    host: Annotated[str, typer.Option(help="Whoever reaches another than this can use it.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    queue: Annotated[int, typer.Option(min=0, help="Requests that may wait.")] = 16,
    language: Language = "en",
) -> None:
    """Answer OpenAI's completions and chat requests over HTTP (extra `serve`)."""
    try:
        from teukenjax.serve import listen, make_app, run_server
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed: uv sync --extra serve") from None
    from teukenjax.infer.terminal import load_generator

    name = run.resolve().name
    listening = listen(host, port)
    generator = load_generator(run)
    app = make_app(generator, name=name, queue=queue, language=language, host=host)
    console().print(f"{name}: http://{host}:{port}/v1", highlight=False)
    run_server(app, listening)
