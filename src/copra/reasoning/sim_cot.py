"""SIM-CoT: latents must tell the steps that they stand for (arXiv 2509.20317, section 3); an option."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from copra import processes
from copra.reasoning.layout import LatentInput, Sample, Work
from copra.reasoning.method import Stage
from copra.settings import MOST_LAYERS, Settings
from copra.training.settings import Distil

if TYPE_CHECKING:
    from torch import Tensor

    from copra.reasoning.forward import Batch, Terms
    from copra.reasoning.thinker import Thinker


def told(steps: Sequence[Sequence[int]], groups: int) -> tuple[tuple[int, ...], ...]:
    """The text that each of `groups` groups of latents must tell: a step each, the last one all that remain.

    Groups beyond the steps tell nothing.
    """
    if not groups:
        return ()
    rest = [token for step in steps[groups - 1 :] for token in step]
    return (*map(tuple, steps[: groups - 1]), *((tuple(rest),) if rest else ()))


class Explaining(Settings):
    """An auxiliary decoder that reads the latents of a step and must write the step.

    It is trained beside the model and dropped at inference, where it costs nothing.
    """

    decoder: Literal["small", "shared"] = "small"
    """A decoder of its own, of a few layers of the model's kind; or the model itself."""
    layers: int = Field(1, ge=1, le=MOST_LAYERS)
    """Layers of a small decoder."""
    weight: float = Field(1.0, gt=0)
    """lambda: the weight of this loss beside the language model's."""

    def parts(self) -> dict[str, dict[str, Any]]:
        return {"step_decoder": {"layers": self.layers}} if self.decoder == "small" else {}

    def weigh(self) -> dict[str, float]:
        return {"explanation": self.weight}

    def counts(self, samples: Sequence[Sample]) -> dict[str, int]:
        return {"explanation": sum(len(text) for sample in samples for text in sample.explained)}

    def work(self, sample: Sample) -> Iterator[Work]:
        reader = "step_decoder" if self.decoder == "small" else "model"
        for text in sample.explained:
            yield Work(reader, sample.latents_a_text + len(text) - 1, len(text))

    def terms(
        self, thinker: "Thinker", batch: "Batch", hidden: "Tensor", latent_input: LatentInput
    ) -> "Terms":
        """The sum of -log p(step k | its latents) over the tokens of all explained steps.

        `hidden` [B, N, d] are the final-norm hidden states. The decoder reads the latents as they were
        fed (after Jacobi iterations: as one more would feed them), then the step; its line break ends it.
        """
        import torch
        from torch.nn import functional
        from torch.nn.utils.rnn import pad_sequence

        from copra.models.logits import read_logits
        from copra.reasoning.forward import latent_feed

        c = batch.latents_a_text
        places = [(row, k) for row, texts in enumerate(batch.explained) for k in range(len(texts))]
        if not places:
            reached = hidden
            if processes.count() > 1:
                # Others may have steps to tell, and where weights are shared out all must pass through them.
                reached = self._read(thinker, hidden[:, :1], torch.ones_like(batch.mask[:, :1]))
            return {"explanation": (reached.sum() * 0.0, 0)}
        rows = torch.tensor([row for row, _ in places], device=hidden.device)
        first = torch.tensor([batch.first_latent + k * c for _, k in places], device=hidden.device)
        # A latent is made from the hidden state of the position before it.
        before = first[:, None] - 1 + torch.arange(c, device=hidden.device)
        feed = latent_feed(thinker.model, latent_input, thinker.part("projection"))
        latents = feed(hidden[rows[:, None], before])
        texts = [torch.tensor(batch.explained[row][k], device=hidden.device) for row, k in places]
        targets = pad_sequence(texts, batch_first=True, padding_value=-1)
        read = targets[:, :-1].clamp(min=0)
        words = thinker.model.get_input_embeddings()(read)
        inputs = torch.cat([latents.to(words.dtype), words], dim=1)
        mask = torch.cat([torch.ones_like(before), (targets[:, :-1] >= 0).long()], dim=1)
        states = self._read(thinker, inputs, mask)
        here = targets >= 0
        logits = read_logits(thinker.model, states[:, c - 1 :][here]).float()
        loss = functional.cross_entropy(logits, targets[here], reduction="sum")
        return {"explanation": (loss, sum(map(len, texts)))}

    def _read(self, thinker: "Thinker", inputs: "Tensor", mask: "Tensor") -> "Tensor":
        """The decoder's hidden states [B, T, d] of input embeddings [B, T, d]."""
        if self.decoder == "small":
            return thinker.parts["step_decoder"](inputs, mask)
        return thinker.model.base_model(
            inputs_embeds=inputs, attention_mask=mask, use_cache=False
        ).last_hidden_state


def check_weighed(explaining: Explaining | None, distil: Distil | None) -> None:
    """Refuse an explanation that the loss would leave out.

    Raises:
        ValueError: its weight is 0.
    """
    if explaining is not None and distil is not None and not distil.task_weight:
        raise ValueError(
            "distil.task_weight: at 0 the method's own loss is left out, and 'explaining' with it; raise the "
            "one or leave out the other"
        )


class ExplainedStage(Stage):
    """A stage whose latents may have to tell their steps: what that adds to parts, loss and work."""

    explaining: Explaining | None = None
    """How steps are told from latents (null: they are not)."""

    def parts(self) -> dict[str, dict[str, Any]]:
        return super().parts() | (self.explaining.parts() if self.explaining else {})

    def weigh(self) -> dict[str, float]:
        return super().weigh() | (self.explaining.weigh() if self.explaining else {})

    def counts(self, samples: Sequence[Sample]) -> dict[str, int]:
        return super().counts(samples) | (self.explaining.counts(samples) if self.explaining else {})

    def work(self, sample: Sample) -> Iterator[Work]:
        yield from super().work(sample)
        if self.explaining is not None:
            yield from self.explaining.work(sample)

    def answer_terms(self, thinker: "Thinker", batch: "Batch", hidden: "Tensor") -> "Terms":
        terms = super().answer_terms(thinker, batch, hidden)
        if self.explaining is not None:
            terms |= self.explaining.terms(thinker, batch, hidden, self.latent_input)
        return terms
