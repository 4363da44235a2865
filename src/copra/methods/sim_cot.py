"""SIM-CoT: an optional auxiliary decoder predicts steps from latents (arXiv 2509.20317, section 3)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from copra.data.sequences import LatentInput, Sample, Work
from copra.methods.losses import LossTerm, LossValues, Outputs, TermValue
from copra.methods.method import Stage
from copra.schema.settings import MOST_LAYERS, Settings
from copra.schema.training import Distil
from copra.utils import processes

if TYPE_CHECKING:
    from torch import Tensor

    from copra.data.batch import Batch
    from copra.methods.reasoning_model import ReasoningModel


def step_targets(
    steps: Sequence[Sequence[int]], groups: int, spare: Sequence[int] = ()
) -> tuple[tuple[int, ...], ...]:
    """Return the target text of each of `groups` groups of latents.

    It is one step per group, and all remaining steps for the last one.
    Groups beyond the steps have the target `spare`, or none if that is empty.
    """
    if not groups:
        return ()
    rest = [token for step in steps[groups - 1 :] for token in step]
    texts = (*map(tuple, steps[: groups - 1]), *((tuple(rest),) if rest else ()))
    return (*texts, *(tuple(spare),) * (groups - len(texts))) if spare else texts


class AuxiliaryDecoder(Settings):
    """An auxiliary decoder that is trained to write a step from the step's latents.

    It is trained with the model and dropped at inference, where it costs nothing. The settings of the
    authors' code (InternLM/SIM-CoT) are `decoder: pretrained, step_loss: sum, spare_latents: answer` for
    Coconut, and `decoder: pretrained, step_loss: mean_per_latent, next_latent: true` for CODI. There an end
    token ends a step, here its line break.
    """

    decoder: Literal["small", "shared", "pretrained"] = "small"
    """Kind of auxiliary decoder. small: a separate decoder of `layers` layers of the model's kind, with
    random initial weights. shared: the model itself. pretrained (the authors'): a second model with its own
    LM head, which reads the model's embeddings and starts as a copy of the model after the recipe's last
    pruning before this step, or of the base if there is none. Training it takes as much memory as training
    the model: 16 bytes per weight, 20 GB more for a model of 1.2 billion weights."""
    layers: int = Field(1, ge=1, le=MOST_LAYERS)
    """Number of layers of a small decoder."""
    weight: float = Field(1.0, gt=0)
    """lambda: weight of this loss relative to the language model's."""
    step_loss: Literal["mean", "sum", "mean_per_latent"] = "mean"
    """Reduction of the tokens' losses. mean: the mean over all tokens. sum: the sum over each step's tokens,
    averaged over steps (the authors' on Coconut; 8 to 10 times as much for GSM8K's equations).
    mean_per_latent: the mean over the tokens of all steps with the same latent, averaged over latents (the
    authors' on CODI)."""
    spare_latents: Literal["nothing", "answer"] = "nothing"
    """Target text of latents beyond a row's steps: nothing, or the answer (the authors' on Coconut)."""
    next_latent: bool = False
    """If true, the latent that would follow the last one predicts a step too (the authors' on CODI)."""

    def extra_modules(self) -> dict[str, dict[str, Any]]:
        layers = {"small": self.layers, "pretrained": None}
        return {} if self.decoder == "shared" else {"step_decoder": {"layers": layers[self.decoder]}}

    def targets(
        self, steps: Sequence[Sequence[int]], groups: int, answer: Sequence[int]
    ) -> tuple[tuple[int, ...], ...]:
        """Return the target texts of a row's `groups` groups of latents (one more with `next_latent`)."""
        spare = answer if self.spare_latents == "answer" else ()
        return step_targets(steps, groups + (self.next_latent and groups > 0), spare)

    def term_names(self, groups: int) -> list[str]:
        """Return the names of the terms of the loss, where rows have at most `groups` groups of latents."""
        if self.step_loss != "mean_per_latent":
            return ["explanation"]
        return [f"explanation_{k}" for k in range(1, groups + (self.next_latent and groups > 0) + 1)]

    def losses(
        self,
        reasoner: "ReasoningModel",
        batch: "Batch",
        hidden: "Tensor",
        latent_input: LatentInput,
        names: Sequence[str],
    ) -> LossValues:
        """Return sums of -log p(step k | its latents) over tokens of explained steps.

        Each has the count that `step_loss` divides by. `hidden` [B, N, d] are the final-norm hidden states,
        `names` are those of the terms. The decoder reads the latents as they were fed (after Jacobi
        iterations: as one more iteration would feed them), then the step, which ends with its line break.
        """
        import torch
        from torch.nn import functional
        from torch.nn.utils.rnn import pad_sequence

        from copra.models.logits import read_logits
        from copra.models.networks import latent_feed

        c = batch.latents_per_text
        places = [(row, k) for row, texts in enumerate(batch.explained) for k in range(len(texts))]
        if not places:
            reached = hidden
            if processes.world_size() > 1:
                # Other processes may have steps; with sharded weights all must run the same passes.
                reached = self._read(reasoner, hidden[:, :1], torch.ones_like(batch.mask[:, :1]))
            return {name: (reached.sum() * 0.0, 0) for name in names}
        rows = torch.tensor([row for row, _ in places], device=hidden.device)
        first = torch.tensor([batch.first_latent + k * c for _, k in places], device=hidden.device)
        # A latent is made from the hidden state of the position before it.
        before = first[:, None] - 1 + torch.arange(c, device=hidden.device)
        feed = latent_feed(reasoner.model, latent_input, reasoner.extra_module("projection"))
        latents = feed(hidden[rows[:, None], before])
        texts = [torch.tensor(batch.explained[row][k], device=hidden.device) for row, k in places]
        targets = pad_sequence(texts, batch_first=True, padding_value=-1)
        read = targets[:, :-1].clamp(min=0)
        words = reasoner.model.get_input_embeddings()(read)
        inputs = torch.cat([latents.to(words.dtype), words], dim=1)
        mask = torch.cat([torch.ones_like(before), (targets[:, :-1] >= 0).long()], dim=1)
        states = self._read(reasoner, inputs, mask)
        here = targets >= 0
        head = getattr(reasoner.extra_module("step_decoder"), "head", None)
        logits = read_logits(reasoner.model, states[:, c - 1 :][here], head).float()
        if self.step_loss != "mean_per_latent":
            loss = functional.cross_entropy(logits, targets[here], reduction="sum")
            return {"explanation": (loss, len(texts) if self.step_loss == "sum" else len(logits))}
        losses = functional.cross_entropy(logits, targets[here], reduction="none")
        numbers = [k for (_, k), text in zip(places, texts, strict=True) for _ in text]
        sums = losses.new_zeros(len(names)).index_add(0, torch.tensor(numbers, device=losses.device), losses)
        return {name: (sums[k], numbers.count(k)) for k, name in enumerate(names)}

    def _read(self, reasoner: "ReasoningModel", inputs: "Tensor", mask: "Tensor") -> "Tensor":
        """Return the decoder's hidden states [B, T, d] of input embeddings [B, T, d]."""
        if self.decoder != "shared":
            return reasoner.extra_modules["step_decoder"](inputs, mask)
        return reasoner.model.base_model(
            inputs_embeds=inputs, attention_mask=mask, use_cache=False
        ).last_hidden_state


def check_weighed(auxiliary_decoder: AuxiliaryDecoder | None, distil: Distil | None) -> None:
    """Check that the loss does not leave out the explanation term.

    Raises:
        ValueError: its weight is 0.
    """
    if auxiliary_decoder is not None and distil is not None and not distil.task_weight:
        raise ValueError(
            "distil.task_weight: at 0 the method's own loss is left out, and 'auxiliary_decoder' with it; "
            "raise the one or leave out the other"
        )


@dataclass(frozen=True)
class Explanation(LossTerm):
    """-log p(step | its latents) under the auxiliary decoder (2509.20317, section 3.2)."""

    name: str
    weight: float
    stage: "ExplainedStage"
    decoder: AuxiliaryDecoder
    names: tuple[str, ...]
    """The names of all terms of the decoder, one per group of latents if there are several."""

    def normalizer(self, samples: Sequence[Sample]) -> float:
        if self.decoder.step_loss == "sum":
            return sum(len(sample.explained) for sample in samples)
        if self.decoder.step_loss == "mean":
            return sum(len(text) for sample in samples for text in sample.explained)
        k = self.names.index(self.name)
        size = sum(len(sample.explained[k]) for sample in samples if k < len(sample.explained))
        # The mean is over latents that have a target text in this batch; texts fill groups from the first.
        return size * (max(len(sample.explained) for sample in samples) / len(self.names))

    def flop_workload(self, samples: Sequence[Sample]) -> Iterator[Work]:
        if self.name != self.names[0]:
            return  # the first term counts the one pass of them all
        reader = "model" if self.decoder.decoder == "shared" else "step_decoder"
        for sample in samples:
            for text in sample.explained:
                yield Work(reader, sample.latents_per_text + len(text) - 1, len(text))
                if self.stage.latent_input == "projected":
                    yield Work("projection", sample.latents_per_text)

    def compute(self, reasoner: "ReasoningModel", batch: "Batch", outputs: Outputs) -> TermValue:
        if "explained" not in outputs:
            outputs["explained"] = self.decoder.losses(
                reasoner, batch, outputs["hidden"], self.stage.latent_input, self.names
            )
        value: TermValue = outputs["explained"][self.name]
        return value


class ExplainedStage(Stage):
    """A stage that may train an auxiliary decoder on its latents."""

    auxiliary_decoder: AuxiliaryDecoder | None = None
    """Auxiliary decoder that predicts steps from latents (null: none)."""

    @property
    def groups(self) -> int:
        """The largest number of groups of latents, each with a target text, that a row may have."""
        return max(layout.latents for layout in self.layouts)

    @property
    def copies_pretrained(self) -> bool:
        return self.auxiliary_decoder is not None and self.auxiliary_decoder.decoder == "pretrained"

    def extra_modules(self) -> dict[str, dict[str, Any]]:
        own = self.auxiliary_decoder.extra_modules() if self.auxiliary_decoder else {}
        return super().extra_modules() | own

    def own_terms(self) -> list[LossTerm]:
        terms = super().own_terms()
        if (decoder := self.auxiliary_decoder) is not None:
            names = tuple(decoder.term_names(self.groups))
            terms += [Explanation(name, decoder.weight / len(names), self, decoder, names) for name in names]
        return terms
