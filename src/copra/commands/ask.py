"""copra ask: ask a model a question, or several at a prompt."""

import readline  # noqa: F401  # lines at the prompt can be edited
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator

from copra.commands.models import add_model, checkpoint_of
from copra.commands.resources import add_threads
from copra.commands.torch_setup import set_up_torch
from copra.evaluation.asking import Reply, load
from copra.utils.errors import CopraError
from copra.utils.problems import shown
from copra.utils.quantities import amount

PROMPT = "> "
LIKELIEST = 5
"""Tokens that are shown for each latent."""


def arguments(parser: ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("question", nargs="?", help="a question (none: type them at a prompt)")
    parser.add_argument(
        "--lens", action="store_true", help="show the likeliest tokens in place of each latent"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, help="maximum length of an answer (default: 256, or what fits)"
    )
    parser.add_argument(
        "--precision", choices=("float32", "bfloat16", "tf32"), default="float32", help="default: float32"
    )
    add_threads(parser)


def run(options: Namespace) -> None:
    set_up_torch(options, options.precision)
    model = load(checkpoint_of(options), options.precision)
    lens = LIKELIEST if options.lens else 0
    if options.question is not None:
        print(page(model.answer(options.question, options.max_new_tokens, lens=lens)))
        return
    for question in _questions():
        try:
            print(page(model.answer(question, options.max_new_tokens, lens=lens)), flush=True)
        except CopraError as error:
            print(error, flush=True)


def page(reply: Reply) -> str:
    """Return a reply as a person reads it: the steps, the answer, the latents, and the cost."""
    lines = [*reply.steps]
    lines.append("no answer" if reply.answer is None else f"answer: {reply.answer}")
    for number, likely in enumerate(reply.lens, start=1):
        tokens = ", ".join(f"{shown(token)} {100 * share:.0f}%" for token, share in likely)
        lines.append(f"latent {number}: {tokens}")
    counts = [f"{reply.latents} latents"] if reply.latents else []
    counts += [f"{reply.tokens} tokens", amount(reply.flops, "FLOPs"), f"{1000 * reply.seconds:.0f} ms"]
    return "\n".join([*lines, f"({', '.join(counts)})"])


def _questions() -> Iterator[str]:
    """Yield questions until the end of the input (Ctrl-D), with a prompt at a terminal."""
    typed = sys.stdin.isatty()
    if typed:
        print("One question per line; Ctrl-D ends.")
    while True:
        try:
            question = input(PROMPT if typed else "")
        except EOFError:
            return
        if question.strip():
            yield question
