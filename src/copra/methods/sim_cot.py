"""SIM-CoT: latents must tell the steps that they stand for (arXiv 2509.20317, section 3); an option."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from copra.data.sequences import LatentInput, Sample, Work
from copra.methods.method import Stage
from copra.schema.settings import MOST_LAYERS, Settings
from copra.schema.training import Distil
from copra.utils import processes

if TYPE_CHECKING:
    from torch import Tensor

    from copra.data.batch import Batch
    from copra.methods.losses import LossTerms
    from copra.methods.reasoning_model import ReasoningModel


def told(
    steps: Sequence[Sequence[int]], groups: int, spare: Sequence[int] = ()
) -> tuple[tuple[int, ...], ...]:
    """The text that each of `groups` groups of latents must tell: a step each, the last one all that remain.

    Groups beyond the steps tell `spare`, or nothing where that is empty.
    """
    if not groups:
        return ()
    rest = [token for step in steps[groups - 1 :] for token in step]
    texts = (*map(tuple, steps[: groups - 1]), *((tuple(rest),) if rest else ()))
    return (*texts, *(tuple(spare),) * (groups - len(texts))) if spare else texts


class Explaining(Settings):
    """An auxiliary decoder that reads the latents of a step and must write the step.

    It is trained beside the model and dropped at inference, where it costs nothing. The authors' code
    (InternLM/SIM-CoT) on Coconut is `decoder: pretrained, step_loss: sum, spare_latents: answer`, and on CODI
    `decoder: pretrained, step_loss: mean_per_latent, next_latent: true`. There an end token ends a step, here
    its line break.
    """

    decoder: Literal["small", "shared", "pretrained"] = "small"
    """A decoder of its own, of a few layers of the model's kind, with random weights at first; or the model
    itself; or a second model, which starts as the pretrained one (the authors'): as the last model of the
    recipe that no training precedes, or none since the last pruning. It reads the model's embeddings and has
    an LM head of its own. Training it takes as much memory as training the model: 16 bytes per weight,
    20 GB more for a model of 1.2 billion weights."""
    layers: int = Field(1, ge=1, le=MOST_LAYERS)
    """Layers of a small decoder."""
    weight: float = Field(1.0, gt=0)
    """lambda: the weight of this loss beside the language model's."""
    step_loss: Literal["mean", "sum", "mean_per_latent"] = "mean"
    """What is made of the tokens' losses: their mean; the sum over each step's tokens, of which the mean over
    steps is taken (the authors' on Coconut; 8 to 10 times as much for GSM8K's equations); or the mean over
    the tokens of all steps that the same latent tells, of which the mean over latents is taken (the authors'
    on CODI)."""
    spare_latents: Literal["nothing", "answer"] = "nothing"
    """What latents tell in a row with fewer steps: nothing, or the answer (the authors' on Coconut)."""
    next_latent: bool = False
    """Whether what the last latent would feed to one more tells a step too (the authors' on CODI)."""

    def parts(self) -> dict[str, dict[str, Any]]:
        layers = {"small": self.layers, "pretrained": None}
        return {} if self.decoder == "shared" else {"step_decoder": {"layers": layers[self.decoder]}}

    def told(
        self, steps: Sequence[Sequence[int]], groups: int, answer: Sequence[int]
    ) -> tuple[tuple[int, ...], ...]:
        """The texts that so many groups of latents, and the next one where asked, must tell of a row."""
        spare = answer if self.spare_latents == "answer" else ()
        return told(steps, groups + (self.next_latent and groups > 0), spare)

    def loss_weights(self, groups: int) -> dict[str, float]:
        """The terms with their weights, where rows have at most so many groups of latents."""
        names = self._names(groups)
        return {name: self.weight / len(names) for name in names}

    def normalizers(self, samples: Sequence[Sample], groups: int) -> dict[str, float]:
        texts = [text for sample in samples for text in sample.explained]
        if self.step_loss == "mean":
            return {"explanation": sum(map(len, texts))}
        if self.step_loss == "sum":
            return {"explanation": len(texts)}
        names = self._names(groups)
        sizes = [
            sum(len(sample.explained[k]) for sample in samples if k < len(sample.explained))
            for k in range(len(names))
        ]
        # The mean is over latents that tell something in this batch.
        share = sum(map(bool, sizes)) / max(len(names), 1)
        return {name: size * share for name, size in zip(names, sizes, strict=True)}

    def flop_workload(self, sample: Sample) -> Iterator[Work]:
        reader = "model" if self.decoder == "shared" else "step_decoder"
        for text in sample.explained:
            yield Work(reader, sample.latents_per_text + len(text) - 1, len(text))

    def _names(self, groups: int) -> list[str]:
        """The terms: one, or one per group of latents."""
        if self.step_loss != "mean_per_latent":
            return ["explanation"]
        return [f"explanation_{k}" for k in range(1, groups + (self.next_latent and groups > 0) + 1)]

    def terms(
        self,
        reasoner: "ReasoningModel",
        batch: "Batch",
        hidden: "Tensor",
        latent_input: LatentInput,
        groups: int,
    ) -> "LossTerms":
        """Sums of -log p(step k | its latents) over tokens of explained steps, and what `step_loss` counts.

        `hidden` [B, N, d] are the final-norm hidden states, `groups` the most groups of latents that a row
        may have. The decoder reads the latents as they were fed (after Jacobi iterations: as one more would
        feed them), then the step; its line break ends it.
        """
        import torch
        from torch.nn import functional
        from torch.nn.utils.rnn import pad_sequence

        from copra.methods.rollout import latent_feed
        from copra.models.logits import read_logits

        c = batch.latents_per_text
        places = [(row, k) for row, texts in enumerate(batch.explained) for k in range(len(texts))]
        if not places:
            reached = hidden
            if processes.world_size() > 1:
                # Others may have steps to tell, and where weights are shared out all must pass through them.
                reached = self._read(reasoner, hidden[:, :1], torch.ones_like(batch.mask[:, :1]))
            return {name: (reached.sum() * 0.0, 0) for name in self._names(groups)}
        rows = torch.tensor([row for row, _ in places], device=hidden.device)
        first = torch.tensor([batch.first_latent + k * c for _, k in places], device=hidden.device)
        # A latent is made from the hidden state of the position before it.
        before = first[:, None] - 1 + torch.arange(c, device=hidden.device)
        feed = latent_feed(reasoner.model, latent_input, reasoner.part("projection"))
        latents = feed(hidden[rows[:, None], before])
        texts = [torch.tensor(batch.explained[row][k], device=hidden.device) for row, k in places]
        targets = pad_sequence(texts, batch_first=True, padding_value=-1)
        read = targets[:, :-1].clamp(min=0)
        words = reasoner.model.get_input_embeddings()(read)
        inputs = torch.cat([latents.to(words.dtype), words], dim=1)
        mask = torch.cat([torch.ones_like(before), (targets[:, :-1] >= 0).long()], dim=1)
        states = self._read(reasoner, inputs, mask)
        here = targets >= 0
        head = getattr(reasoner.part("step_decoder"), "head", None)
        logits = read_logits(reasoner.model, states[:, c - 1 :][here], head).float()
        if self.step_loss != "mean_per_latent":
            loss = functional.cross_entropy(logits, targets[here], reduction="sum")
            return {"explanation": (loss, len(texts) if self.step_loss == "sum" else len(logits))}
        losses = functional.cross_entropy(logits, targets[here], reduction="none")
        numbers = [k for (_, k), text in zip(places, texts, strict=True) for _ in text]
        names = self._names(groups)
        sums = losses.new_zeros(len(names)).index_add(0, torch.tensor(numbers, device=losses.device), losses)
        return {name: (sums[k], numbers.count(k)) for k, name in enumerate(names)}

    def _read(self, reasoner: "ReasoningModel", inputs: "Tensor", mask: "Tensor") -> "Tensor":
        """The decoder's hidden states [B, T, d] of input embeddings [B, T, d]."""
        if self.decoder != "shared":
            return reasoner.parts["step_decoder"](inputs, mask)
        return reasoner.model.base_model(
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

    @property
    def groups(self) -> int:
        """The most groups of latents, each of which tells a text, that a row may have."""
        return max(layout.latents for layout in self.layouts)

    @property
    def copies_pretrained(self) -> bool:
        return self.explaining is not None and self.explaining.decoder == "pretrained"

    def parts(self) -> dict[str, dict[str, Any]]:
        return super().parts() | (self.explaining.parts() if self.explaining else {})

    def loss_weights(self) -> dict[str, float]:
        return super().loss_weights() | (self.explaining.loss_weights(self.groups) if self.explaining else {})

    def normalizers(self, samples: Sequence[Sample]) -> dict[str, float]:
        return super().normalizers(samples) | (
            self.explaining.normalizers(samples, self.groups) if self.explaining else {}
        )

    def flop_workload(self, sample: Sample) -> Iterator[Work]:
        yield from super().flop_workload(sample)
        if self.explaining is not None:
            yield from self.explaining.flop_workload(sample)
            if self.latent_input == "projected" and sample.explained:
                yield Work("projection", sample.latents_per_text * len(sample.explained))

    def answer_terms(self, reasoner: "ReasoningModel", batch: "Batch", hidden: "Tensor") -> "LossTerms":
        terms = super().answer_terms(reasoner, batch, hidden)
        if self.explaining is not None:
            terms |= self.explaining.terms(reasoner, batch, hidden, self.latent_input, self.groups)
        return terms
