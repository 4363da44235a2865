"""A language model with the extra modules that a method adds to it."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from copra.data.batch import Batch
from copra.data.sequences import LatentInput, Thought
from copra.methods.rollout import hidden_states


class ReasoningModel(nn.Module):
    """The language model, the extra modules trained with it, and a frozen teacher.

    `parts` maps names of `copra.models.parts` to modules. `teacher` is a reasoning model with its own extra
    modules. It is not registered as a submodule: it is neither trained nor saved, and always in evaluation
    mode.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        parts: nn.ModuleDict | None = None,
        teacher: "ReasoningModel | None" = None,
    ):
        super().__init__()
        self.model = model
        self.parts = nn.ModuleDict() if parts is None else parts
        self.__dict__["teacher"] = None if teacher is None else teacher.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def part(self, name: str) -> nn.Module | None:
        return self.parts[name] if name in self.parts else None  # noqa: SIM401

    def hidden_states(
        self, batch: Batch, thought: Thought, latent_input: LatentInput = "raw", iterations: int = 0
    ) -> Tensor:
        """Return final-norm hidden states [B, N, d] of the language model, with latents fed as given."""
        return hidden_states(
            self.model,
            batch,
            thought,
            latent_input,
            projection=self.part("projection"),
            iterations=iterations,
        )
