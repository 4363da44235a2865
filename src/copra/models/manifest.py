"""The manifest of a checkpoint (`copra.json`): what it was made of, how it answers, and its files."""

from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from copra.data.sequences import GenerationSpec
from copra.schema.loop import Loop
from copra.schema.shape import ModelShape
from copra.utils.errors import CopraError
from copra.utils.files import MANIFEST, read_sealed_json, write_sealed_json


class Record(BaseModel):
    """An immutable part of a manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Weights(Record):
    """The file of the language model's weights."""

    sha256: str
    bytes: int
    dtype: str
    """Type of the weights, such as "float32"; of quantized weights that of their scales."""


class ExtraModules(Record):
    """The file of the extra modules that a method added."""

    settings: dict[str, dict[str, Any]]
    """The settings that each module was created with, by name (`copra.models.extra_modules`)."""
    parameters: dict[str, int]
    """Number of weights of each module."""
    bytes: int
    sha256: str


class Provenance(Record):
    """The parents, steps and data that a model was made of, and its generation spec."""

    node: str
    """Name of the model node."""
    base: dict[str, Any]
    """Settings of the base model."""
    seed: int | None
    lineage: list[dict[str, Any]]
    """One entry per step since the base: its settings, the checksums of its inputs, and its result."""
    method: str | None
    """Name of the last method (None: a base)."""
    decoding: GenerationSpec | None
    """The generation spec (None: the model was never trained to answer)."""
    dense_shape: ModelShape
    """Shape of the base, to which budgets of prunings refer."""
    typical_answer: dict[str, int]
    """Number of tokens (prompt, generated) of an answer, by which prunings compare FLOPs."""
    training_flops: int | float
    """FLOPs of all trainings since the base."""
    trained_markers: bool
    """True if the model, or one of its ancestors, was trained to read the latent markers."""
    quantized: str | None = Field(None, exclude_if=lambda value: value is None)
    """Type of quantized weights, such as "int8" (None: not quantized)."""
    budget_missed: float | None = Field(None, exclude_if=lambda value: value is None)
    """Relative distance of a pruned model from its budget."""
    made_by: dict[str, Any] = Field(default_factory=dict)
    """The settings and input checksums of the rule that wrote the checkpoint."""

    @property
    def loop(self) -> Loop | None:
        """The loop with which the model answers (None: every layer is run once)."""
        return self.decoding.loop if self.decoding else None

    def after(self, node: str, step: dict[str, Any], **changes: Any) -> "Provenance":
        """Return the provenance of the model that one more step makes of this one.

        The generation spec is the same. `step` is the step's entry in the lineage except its name; `changes`
        are other fields.
        """
        kept = {name: getattr(self, name) for name in Provenance.model_fields}
        lineage = [*self.lineage, {"step": node.rsplit("+", 1)[-1], **step}]
        return Provenance(**{**kept, "node": node, "lineage": lineage, "budget_missed": None, **changes})


class Manifest(Provenance):
    """The whole manifest. It contains no times and no paths, so equal runs write equal manifests."""

    files: dict[str, str]
    """The sha256 of every file of the checkpoint except this one, by path relative to its folder."""
    extra_modules: ExtraModules | None
    shape: ModelShape
    parameters: int
    """Number of weights of the language model."""
    weights: Weights
    versions: dict[str, str]
    """Versions of copra, torch and transformers that wrote the checkpoint."""

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the manifest of a checkpoint's folder, without checking the other files.

        Raises:
            CopraError: it is missing, was edited, or is not of this version of copra.
        """
        path = Path(folder) / MANIFEST
        try:
            return cls.model_validate(read_sealed_json(path))
        except ValidationError as error:
            raise CopraError(
                f"{path}: is not a manifest of this version of copra ({error.errors()[0]['loc'][0]}: "
                f"{error.errors()[0]['msg']}). Delete {folder} and run snakemake again."
            ) from None

    def write(self, folder: Path) -> None:
        """Write the manifest into a checkpoint's folder, with its own digest."""
        write_sealed_json(folder / MANIFEST, self.model_dump(mode="json"))

    @property
    def answering_modules(self) -> tuple[str, ...]:
        """The names of the extra modules that answering needs."""
        return self.decoding.extra_modules if self.decoding else ()
