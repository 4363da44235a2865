"""Plain decoding: a prompt at a time, no cache, every token by a pass over all of it."""

from collections.abc import Callable

import torch

from copra.data.sequences import GenerationSpec
from helpers.decodings import DECODINGS


def last_state(model, vectors: list) -> torch.Tensor:
    """The final hidden state of the last of these input embeddings."""
    stacked = torch.stack(vectors)[None]
    return model.base_model(inputs_embeds=stacked, use_cache=False).last_hidden_state[0, -1]


def feeding(model, decoding: GenerationSpec, extra_modules) -> Callable:
    """What makes the input of a latent from a hidden state."""
    embedding = model.get_input_embeddings().weight
    return {
        "raw": lambda vector: vector,
        "scaled": lambda vector: vector / vector.norm() * embedding.norm(dim=1).mean(),
        "projected": extra_modules["projection"],
    }[decoding.latent_input]


@torch.no_grad()
def plain_latents(model, prompt, decoding: GenerationSpec, extra_modules) -> list:
    """The input embeddings of the latents; each runs the whole prefix again."""
    embedding, feed = model.get_input_embeddings().weight, feeding(model, decoding, extra_modules)
    vectors = [embedding[token] for token in [*prompt, *decoding.prefix_ids]]
    token, n = embedding[decoding.latent_token], decoding.latents
    if decoding.thought == "embedding":
        return [token] * n
    latents: list = [token] * n
    if decoding.iterations is None:
        for i in range(n):
            latents[i] = feed(last_state(model, vectors + latents[:i]))
    for _ in range(decoding.iterations or 0):
        latents = [feed(last_state(model, vectors + latents[:i])) for i in range(n)]
    return latents


@torch.no_grad()
def plain_tokens(model, prompt, decoding, length: int, extra_modules, given=None) -> list[int]:
    """`length` greedy tokens; every one of them, and every latent, recomputes the whole prefix. `given`
    [n, d] are fed in place of the latents."""
    embedding = model.get_input_embeddings().weight
    decoding = decoding or DECODINGS["no thought"]
    inputs = [embedding[token] for token in [*prompt, *decoding.prefix_ids]]
    inputs += plain_latents(model, prompt, decoding, extra_modules) if given is None else given
    inputs += [embedding[token] for token in decoding.suffix_ids]
    handles = replaced_states(model, prompt, extra_modules) if decoding.emulated else []
    tokens: list[int] = []
    for _ in range(length):
        logits = model.get_output_embeddings().weight @ last_state(model, inputs)
        tokens.append(int(logits.argmax()))
        inputs.append(embedding[tokens[-1]])
    for handle in handles:
        handle.remove()
    return tokens


def replaced_states(model, prompt, extra_modules) -> list:
    """Put what the student makes of the emulator's states before each block, at the prompt's end."""
    n = len(prompt)
    whole = torch.tensor([prompt]), torch.ones(1, n, dtype=torch.long), torch.arange(n)[None]
    thoughts = extra_modules["mind_reader"](extra_modules["emulator"](*whole, torch.tensor([n - 1])))

    def replacing(thought):
        def hook(_, arguments):
            hidden = arguments[0].clone()
            hidden[0, n - 1] = thought
            return hidden, *arguments[1:]

        return hook

    layers = model.base_model.h if hasattr(model.base_model, "h") else model.base_model.layers
    return [
        block.register_forward_pre_hook(replacing(thought[0]))
        for block, thought in zip(layers, thoughts, strict=True)
    ]
