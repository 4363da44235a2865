"""A language model with the extra modules that a method adds to it."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from copra.data.batch import Batch
from copra.data.sequences import LatentInput, Thought
from copra.methods.hidden_states import hidden_states


class ReasoningModel(nn.Module):
    """The language model, the extra modules trained with it, and a frozen teacher.

    `extra_modules` maps names of `copra.models.extra_modules` to modules. `teacher` is a reasoning model with
    its own extra modules. It is not registered as a submodule: it is neither trained nor saved, and always in
    evaluation mode.
    """

    teacher: "ReasoningModel | None"

    def __init__(
        self,
        model: PreTrainedModel,
        extra_modules: nn.ModuleDict | None = None,
        teacher: "ReasoningModel | None" = None,
    ):
        super().__init__()
        self.model = model
        self.extra_modules = nn.ModuleDict() if extra_modules is None else extra_modules
        self.__dict__["teacher"] = None if teacher is None else teacher.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def extra_module(self, name: str) -> nn.Module | None:
        return self.extra_modules[name] if name in self.extra_modules else None  # noqa: SIM401

    def hidden_states(
        self, batch: Batch, thought: Thought, latent_input: LatentInput = "raw", iterations: int = 0
    ) -> Tensor:
        """Return final-norm hidden states [B, N, d] of the language model, with latents fed as given."""
        return hidden_states(
            self.model,
            batch,
            thought,
            latent_input,
            projection=self.extra_module("projection"),
            iterations=iterations,
        )
