"""Speed as ratios within one run: what copra does against the plain way of doing it.

    python benchmarks/speed.py [--threads N] [--size tiny]

A ratio of 3 means that the plain way takes three times as long on this machine. Seconds mean nothing
elsewhere; the ratios travel better.
"""

import argparse
from random import Random

import torch
from measuring import seconds
from sizes import SIZES
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from copra.data.batch import Batch, collate
from copra.data.sequences import IGNORED, GenerationSpec, Markers, TokenRow, lay_out
from copra.generation.decode import decode
from copra.methods.hidden_states import hidden_states
from copra.methods.loss_functions import cross_entropy

LATENTS, MARKERS = 6, Markers(1, 2, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--size", choices=SIZES, default="13m")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES[options.size]))
    rows = _rows(16, SIZES[options.size]["vocab_size"], Random(0))
    text = collate([lay_out(row, 0, 0, None) for row in rows], 0)
    latent = collate([lay_out(row, None, LATENTS, MARKERS) for row in rows], 0)
    prompts = [row.question for row in rows]

    print(f"{torch.get_num_threads()} thread(s), {sum(p.numel() for p in model.parameters()):,} parameters")
    labelled = seconds(lambda: _step(model, latent))
    print("training step, no-CoT with latents (copra: 1.0)")
    print(f"  logits at every position       {seconds(lambda: _all_logits(model, latent)) / labelled:6.2f}")
    print(f"  prefix recomputed each latent  {seconds(lambda: _recomputed(model, latent)) / labelled:6.2f}")
    chain = seconds(lambda: _step(model, text))
    print(f"  CoT on the same rows           {chain / labelled:6.2f}")

    decoding = GenerationSpec((1,), LATENTS, "hidden", 2, (3,))
    batched = seconds(lambda: _decode(model, prompts, decoding, len(prompts)))
    print("decoding 16 answers of 16 tokens after 6 latents (copra: 1.0)")
    single = seconds(lambda: _decode(model, prompts, decoding, 1))
    print(f"  one by one                     {single / batched:6.2f}")
    print(f"  without a cache, batched       {seconds(lambda: _uncached(model, text)) / batched:6.2f}")


def _rows(count: int, vocabulary: int, draw: Random) -> list[TokenRow]:
    def tokens(n: int) -> list[int]:
        return [draw.randrange(10, vocabulary) for _ in range(n)]

    return [
        TokenRow(str(i), tokens(draw.randrange(50, 70)), [tokens(12) for _ in range(5)], tokens(4))
        for i in range(count)
    ]


def _step(model: LlamaForCausalLM, batch: Batch) -> None:
    """Forward and backward pass, as training takes them."""
    _backward(model, cross_entropy(model, batch, hidden_states(model, batch, "hidden"))[0])


def _backward(model: LlamaForCausalLM, loss: torch.Tensor) -> None:
    loss.backward()
    model.zero_grad()


def _all_logits(model: LlamaForCausalLM, batch: Batch) -> None:
    logits = model.get_output_embeddings()(hidden_states(model, batch, "hidden"))[:, :-1].float()
    _backward(
        model,
        functional.cross_entropy(logits.flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=IGNORED),
    )


def _recomputed(model: LlamaForCausalLM, batch: Batch) -> None:
    """One pass over everything so far for each latent, as in an implementation without a cache."""
    embeddings = model.get_input_embeddings()(batch.tokens)
    for i in range(batch.max_latents):
        column = batch.first_latent + i
        hidden = model.base_model(
            inputs_embeds=embeddings[:, :column],
            attention_mask=batch.mask[:, :column],
            position_ids=batch.positions[:, :column],
            use_cache=False,
        ).last_hidden_state
        embeddings = torch.cat([embeddings[:, :column], hidden[:, -1:], embeddings[:, column + 1 :]], dim=1)
    hidden = model.base_model(
        inputs_embeds=embeddings, attention_mask=batch.mask, position_ids=batch.positions, use_cache=False
    ).last_hidden_state
    supervised = batch.labels[:, 1:] != IGNORED
    logits = model.get_output_embeddings()(hidden[:, :-1][supervised])
    _backward(model, functional.cross_entropy(logits.float(), batch.labels[:, 1:][supervised]))


def _decode(
    model: LlamaForCausalLM, prompts: list[list[int]], decoding: GenerationSpec, batch_size: int
) -> None:
    decode(
        model, prompts, decoding, stop=0, pad=0, max_new_tokens=16, batch_size=batch_size, force_length=True
    )


@torch.inference_mode()
def _uncached(model: LlamaForCausalLM, batch: Batch) -> None:
    """As many whole passes as decoding makes, each over a prompt that grows by one token."""
    for step in range(LATENTS + 16):
        width = min(70 + step, batch.tokens.shape[1])
        model.base_model(
            input_ids=batch.tokens[:, :width], attention_mask=batch.mask[:, :width], use_cache=False
        )


if __name__ == "__main__":
    main()
