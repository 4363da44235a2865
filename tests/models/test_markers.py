"""Rows of the latent markers: where they begin, and when they are kept."""

import pytest
import torch
from little import SIZES, model_for, tokenizer_for
from tokenizers import Tokenizer
from tokenizers import models as tokenizer_models
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from copra.data.tokenization import MARKERS, pad_id
from copra.models.bases import add_markers, brings_trained_markers, make_base, start_markers
from copra.models.logits import SUPPRESSED, read_logits
from copra.schema.base import Base, FromScratch
from copra.utils.files import MANIFEST
from helpers.manifests import manifest


@pytest.fixture
def folder(tmp_path, rows):
    tokenizer = tokenizer_for(rows)
    model_for(tokenizer, tied=False).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("tied", [True, False])
def test_markers_begin_as_copies_of_the_row_of_the_angle_brackets(rows, architecture, tied):
    tokenizer = tokenizer_for(rows)
    model = model_for(tokenizer, architecture, tied)
    size = len(tokenizer)
    embedding = model.get_input_embeddings().weight.detach().clone()
    head = model.get_output_embeddings().weight.detach().clone()
    first = tokenizer("<<")["input_ids"][0]
    add_markers(model, tokenizer)
    assert len(tokenizer) == model.config.vocab_size == size + 3
    assert [tokenizer.convert_tokens_to_ids(marker) for marker in MARKERS] == [size, size + 1, size + 2]
    for module, before in ((model.get_input_embeddings(), embedding), (model.get_output_embeddings(), head)):
        assert module.weight.shape == (size + 3, 32)
        assert torch.equal(module.weight[:size], before)
        assert torch.equal(module.weight[size:], before[first].expand(3, -1))
    shared = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert shared == tied
    assert torch.equal(embedding, head) == tied
    assert model(torch.tensor([[size, size + 1, size + 2]])).logits.shape == (1, 3, size + 3)


def test_without_angle_brackets_markers_begin_as_the_line_break(word_base):
    base = word_base(tie_word_embeddings=False)
    assert base.tokenizer("<<")["input_ids"] == [base.tokenizer.unk_token_id]
    (line_break,) = base.tokenizer("\n")["input_ids"]
    markers = base.tokenizer.convert_tokens_to_ids(list(MARKERS))
    modules = (base.model.get_input_embeddings(), base.model.get_output_embeddings())
    before = [module.weight.detach().clone() for module in modules]
    start_markers(base.model, base.tokenizer)
    for module, old in zip(modules, before, strict=True):
        assert torch.equal(module.weight[markers], old[line_break].expand(3, -1))
        assert torch.equal(module.weight[: markers[0]], old[: markers[0]])


def test_spare_rows_of_the_embedding_are_used_first(rows):
    tokenizer = tokenizer_for(rows)
    size = len(tokenizer)
    model = model_for(tokenizer, extra=10)
    add_markers(model, tokenizer)
    assert model.config.vocab_size == size + 10
    weight = model.get_input_embeddings().weight
    assert torch.equal(weight[size + 2], weight[tokenizer("<<")["input_ids"][0]])


def test_other_special_tokens_stay(rows):
    tokenizer = tokenizer_for(rows)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|mine|>"]})
    add_markers(model_for(tokenizer), tokenizer)
    assert {"<|mine|>", *MARKERS, "<|pad|>", "<|end|>"} <= set(tokenizer.all_special_tokens)


@pytest.mark.parametrize("tied", [True, False])
def test_tokens_without_a_row_get_the_mean_of_all(tmp_path, rows, tied):
    """A pad token that was added to the tokenizer alone; drawn at random, two bases would differ."""
    tokenizer = tokenizer_for(rows)
    model = model_for(tokenizer, tied=tied)
    size = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    made, again = (make_base(Base(path=str(tmp_path)), [], None) for _ in range(2))
    for module, old in (
        (made[0].get_input_embeddings(), model.get_input_embeddings()),
        (made[0].get_output_embeddings(), model.get_output_embeddings()),
    ):
        assert torch.equal(module.weight[:size], old.weight)
        assert torch.allclose(module.weight[size], old.weight.mean(0), atol=1e-6)
    assert pad_id(made[1]) == size
    assert all(torch.equal(w, again[0].state_dict()[name]) for name, w in made[0].state_dict().items())


@pytest.mark.parametrize("tied", [True, False])
def test_rows_of_markers_that_a_base_brings_are_kept(tmp_path, rows, tied):
    tokenizer = tokenizer_for(rows)
    model = model_for(tokenizer, tied=tied)
    add_markers(model, tokenizer)
    ids = tokenizer.convert_tokens_to_ids(list(MARKERS))
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    with torch.no_grad():
        for number, module in enumerate(modules):
            module.weight[ids] = torch.arange(96.0).view(3, 32) + number
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again, known = make_base(Base(path=str(tmp_path)), [], None)
    assert len(known) == len(tokenizer) == again.config.vocab_size
    for module, saved in zip(
        (again.get_input_embeddings(), again.get_output_embeddings()), modules, strict=True
    ):
        assert torch.equal(module.weight, saved.weight)


def test_which_bases_bring_trained_markers(folder, rows):
    """A copy of a checkpoint without its manifest does: who else would have the markers?"""
    spec = FromScratch(**SIZES)
    assert not brings_trained_markers(Base(from_scratch=spec))
    assert not brings_trained_markers(Base(path=str(folder)))
    base = make_base(Base(path=str(folder)), [], None)
    for part in base:
        part.save_pretrained(folder)
    assert brings_trained_markers(Base(path=str(folder)))
    for trained in (False, True):
        manifest(trained_markers=trained).write(folder)
        assert brings_trained_markers(Base(path=str(folder))) == trained
    # A manifest of another version of copra, which the user's own folder may hold.
    (folder / MANIFEST).write_text('{"node": "a", "trained_markers": false}')
    assert not brings_trained_markers(Base(path=str(folder)))


def test_markers_start_somewhere_with_any_tokenizer(rows):
    """One that drops what it does not know: line breaks are known, or only the end token is."""
    for known, expected in ((["x", "\n"], "\n"), (["x"], "<|end|>")):
        vocabulary = {token: number for number, token in enumerate(["<|pad|>", "<|end|>", *known])}
        made = Tokenizer(tokenizer_models.BPE(vocab=vocabulary, merges=[]))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>")
        assert tokenizer("<<")["input_ids"] == []
        model = model_for(tokenizer)
        add_markers(model, tokenizer)
        weight = model.get_input_embeddings().weight
        assert torch.equal(weight[-3:], weight[vocabulary[expected]].expand(3, -1))


def losses(model, tokens):
    """Next-token losses by copra's logits, and by the model's own."""
    hidden = model.base_model(tokens).last_hidden_state
    ours = functional.cross_entropy(read_logits(model, hidden)[0, :-1].float(), tokens[0, 1:])
    return ours, model(tokens, labels=tokens).loss


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("tied", [True, False])
def test_untrained_markers_change_no_score(tmp_path, rows, architecture, tied):
    """The loss of a base, its gradients and its answers are those of the model that it was made of."""
    tokenizer = tokenizer_for(rows)
    original = model_for(tokenizer, architecture, tied)
    (brackets,) = tokenizer("<<")["input_ids"][:1]
    with torch.no_grad():
        # A model that writes the angle brackets above all, as one that reasons in equations does.
        original.get_output_embeddings().weight[brackets] *= 20
    original.save_pretrained(tmp_path / "original")
    tokenizer.save_pretrained(tmp_path / "original")
    base, known = make_base(Base(path=str(tmp_path / "original")), [], None)
    base.save_pretrained(tmp_path / "base")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    tokens = torch.randint(2, len(tokenizer), (1, 24), generator=torch.Generator().manual_seed(1))
    _, expected = losses(original.eval(), tokens)
    expected.backward()
    markers = known.convert_tokens_to_ids(list(MARKERS))
    for model in (base.eval(), again.eval()):
        found, plain = losses(model, tokens)
        assert found.item() == pytest.approx(expected.item(), abs=1e-6)
        assert plain.item() > expected.item() + 0.02
        found.backward()
        for name, weight in original.named_parameters():
            gradient = model.get_parameter(name).grad
            if gradient.shape != weight.grad.shape:
                assert not gradient[markers].any()
                gradient = gradient[: len(weight)]
            assert torch.allclose(gradient, weight.grad, atol=1e-6)
        run = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
        assert torch.equal(model.generate(tokens[:, :4], **run), original.generate(tokens[:, :4], **run))


def test_markers_are_in_the_softmax_once_they_are_trained(folder):
    base, tokenizer = make_base(Base(path=str(folder)), [], None)
    markers = tokenizer.convert_tokens_to_ids(list(MARKERS))
    hidden = torch.randn(2, 3, 32)
    assert (read_logits(base, hidden)[..., markers] == SUPPRESSED).all()
    start_markers(base, tokenizer)
    assert torch.equal(read_logits(base, hidden), base.get_output_embeddings()(hidden))
    for part in (base, tokenizer):
        part.save_pretrained(folder)
    # This folder has no manifest, so its markers count as trained.
    again, _ = make_base(Base(path=str(folder)), [], None)
    assert again.generation_config.suppress_tokens is None


def test_suppressed_tokens_need_not_stand_together(folder):
    base, _ = make_base(Base(path=str(folder)), [], None)
    base.generation_config.suppress_tokens = [9, 4, 5, 0]
    logits = read_logits(base, torch.randn(1, 32))[0]
    assert (logits == SUPPRESSED).nonzero().flatten().tolist() == [0, 4, 5, 9]
