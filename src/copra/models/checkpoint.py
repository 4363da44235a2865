"""Read and write checkpoints: folders in Hugging Face form with copra's manifest next to the weights."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import copra
from copra.data.sequences import GenerationSpec
from copra.models import per_layer
from copra.models.anatomy import blocks
from copra.models.extra_modules import make_extra_modules
from copra.models.loading import load_language_model, no_progress_bars
from copra.models.looping import loop_layers
from copra.models.manifest import ExtraModules, Manifest, Provenance, Weights
from copra.models.pack import LOG, pack, unpack
from copra.models.portable import mark
from copra.models.quantized import need_torchao, sort_metadata, unquantized
from copra.models.seal import check_files, checksums
from copra.models.shape import shape_of
from copra.models.thinking import FILE
from copra.models.visits import unlooped
from copra.schema.settings import Precision
from copra.schema.shape import ModelShape
from copra.utils.errors import CopraError
from copra.utils.files import replacing

WEIGHTS = "model.safetensors"
EXTRA_MODULES_FILE = FILE


@dataclass
class Checkpoint:
    """A model in memory with its tokenizer, its manifest and the extra modules that a method added."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    manifest: Manifest
    extra_modules: nn.ModuleDict = field(default_factory=nn.ModuleDict)

    @property
    def shape(self) -> ModelShape:
        """The sizes of the layers that a position visits: a looped layer counts in every pass."""
        return shape_of(self.model.config.to_dict())

    @property
    def decoding(self) -> GenerationSpec | None:
        """The generation spec (None: the model was never trained to answer)."""
        return self.manifest.decoding

    @property
    def precision(self) -> Precision:
        """The precision of the model's matrix products in this process and on its device."""
        if self.model.dtype == torch.bfloat16:
            return "bfloat16"
        tf32 = self.model.device.type == "cuda" and torch.get_float32_matmul_precision() == "high"
        return "tf32" if tf32 else "float32"

    @property
    def files(self) -> dict[str, str]:
        """The sha256 of each file by name: weights, config, tokenizer and extra modules, without the log."""
        return {name: sha256 for name, sha256 in self.manifest.files.items() if name != LOG}

    @property
    def identity(self) -> dict[str, Any]:
        """Everything except the input that its answers depend on, bit by bit.

        That is files, generation spec, device, precision and number of threads.
        """
        return {
            "files": self.files,
            "decoding": self.decoding and self.decoding.to_json(),
            "device": [self.model.device.type, str(self.model.dtype), self.precision],
            "threads": torch.get_num_threads(),
        }


def device() -> torch.device:
    """Return the device to compute on: the first visible GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def has_bfloat16() -> bool:
    """True if `device()` multiplies bfloat16 matrices in hardware.

    Otherwise PyTorch's emulation is hundreds of times slower than float32, above all in the backward pass.
    """
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def usable_precision(wanted: Precision) -> Precision:
    """Return the wanted precision, or float32 if `device()` does not support it."""
    if wanted == "bfloat16":
        return wanted if has_bfloat16() else "float32"
    if wanted == "tf32":
        return wanted if has_tf32() else "float32"
    return "float32"


def has_tf32() -> bool:
    """True on NVIDIA GPUs of compute capability 8.0 (Ampere) or later. AMD numbers its own differently."""
    nvidia = torch.cuda.is_available() and not torch.version.hip
    return nvidia and torch.cuda.get_device_capability() >= (8, 0)


def register() -> None:
    """Register copra's model classes with transformers' Auto classes; calling it again is harmless."""
    per_layer.register()


def load_checkpoint(
    folder: Path, precision: Precision = "float32", *, to_answer: bool = False, looped: bool = True
) -> Checkpoint:
    """Load a checkpoint onto `device()` after checking its files against the manifest.

    With `to_answer`, extra modules that only training needs are left out: a step decoder may be as large as
    the model. A model that answers with a loop is looped; without `looped` it is the ordinary model of its
    files.

    The weights keep their stored type, or become bfloat16 if `precision` is "bfloat16", which is meant for
    work that only answers. int8 weights compute in float32, the type of their scales. On a device without
    bfloat16 the model is float32.

    Raises:
        CopraError: a file is missing, changed or unexpected, or the weights are not those that the config
            describes, or they are int8 and torchao is missing.
    """
    folder = Path(folder)
    manifest = checked_manifest(folder)
    register()
    quantized = manifest.quantized is not None
    if quantized:
        need_torchao()
    try:
        # Not `model.to`, which would also round the frequencies of rotary positions.
        shortened = usable_precision(precision) == "bfloat16" and not quantized
        dtype = torch.bfloat16 if shortened else "auto"
        model = load_language_model(folder, str(folder), dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, SafetensorError) as error:
        raise CopraError(f"{folder}: cannot be loaded ({error}). Delete it and run again.") from error
    if model.dtype == torch.bfloat16 and not has_bfloat16():
        model.to(torch.float32)  # type: ignore[arg-type]  # transformers wraps `to`, which hides that it is a method
    model.to(device())  # type: ignore[arg-type]  # transformers wraps `to`, which hides that it is a method
    model.eval()
    extra_modules = nn.ModuleDict()
    if manifest.extra_modules is not None:
        wanted = manifest.extra_modules.settings
        if to_answer:
            wanted = {name: wanted[name] for name in manifest.answering_modules}
        extra_modules = make_extra_modules(unquantized(model) if quantized else model, wanted)
        if wanted:
            load_model(extra_modules, folder / EXTRA_MODULES_FILE, strict=not to_answer)
    if looped:
        loop_layers(model, manifest.loop)
    return Checkpoint(model, tokenizer, manifest, extra_modules.eval())


def checked_manifest(folder: Path) -> Manifest:
    """Return the manifest of a checkpoint after checking all files against it.

    Raises:
        CopraError: a file is missing, changed or unexpected, or the manifest itself was edited.
    """
    manifest = Manifest.read(folder)
    unpack(folder)
    check_files(folder, manifest.files)
    return manifest


def load_unquantized(folder: Path) -> Checkpoint:
    """Load a checkpoint for work that changes weights, reads them or computes their gradients, not looped.

    Raises:
        CopraError: as `load_checkpoint` does, or the weights are int8.
    """
    refuse_quantized(folder)
    return load_checkpoint(folder, looped=False)


def refuse_quantized(folder: Path) -> None:
    """Check that a checkpoint has no int8 weights, for work on weights or their gradients.

    Raises:
        CopraError: the weights are int8.
    """
    manifest = Manifest.read(folder)
    if (weights := manifest.quantized) is not None:
        made_of = manifest.node.rsplit("+", 1)[0]
        raise CopraError(
            f"{folder}: is quantized already, and {weights} weights can neither be trained, scored, pruned "
            f"nor quantized again. Take the checkpoint that it was made of, {made_of}, and quantize last."
        )


def save_checkpoint(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    provenance: Provenance,
    texts: dict[str, str] | None = None,
    extra_modules: nn.ModuleDict | None = None,
    module_settings: dict[str, dict[str, Any]] | None = None,
) -> None:
    """Write a checkpoint in one rename: config, tokenizer, weights, manifest, further `texts` by name.

    The weights are written in the type that the base's settings in the manifest name. The extra modules are
    written to a separate file, so that the model alone loads without copra; `module_settings` are those that
    they were created with. A looped model is written as the ordinary model.

    The manifest is the provenance with the checksums of all files, sizes, shape and versions.
    """
    if dtype := provenance.base.get("dtype"):
        model.to(getattr(torch, dtype))
    with replacing(folder) as temporary, unlooped(model):
        with no_progress_bars():
            model.save_pretrained(temporary, max_shard_size="1TB")
            tokenizer.save_pretrained(temporary)
        loop, layers = provenance.loop, len(blocks(model))
        mark(temporary, provenance.decoding, None if loop is None else loop.visits(layers))
        for name, text in (texts or {}).items():
            (temporary / name).write_text(text)
        described = _save_extra_modules(
            temporary / EXTRA_MODULES_FILE, extra_modules, module_settings or {}, model.dtype
        )
        weights = temporary / WEIGHTS
        if provenance.quantized is not None:
            sort_metadata(weights)
        files = checksums(temporary)
        Manifest(
            **{name: getattr(provenance, name) for name in Provenance.model_fields},
            files=files,
            extra_modules=described and ExtraModules(**described, sha256=files[EXTRA_MODULES_FILE]),
            shape=shape_of(model.config.to_dict()),
            parameters=sum(p.numel() for p in model.parameters()),
            weights=Weights(
                sha256=files[WEIGHTS],
                bytes=weights.stat().st_size,
                dtype=str(model.dtype).removeprefix("torch."),
            ),
            versions={
                "copra": copra.__version__,
                "torch": torch.__version__.split("+")[0],
                "transformers": transformers.__version__,
            },
        ).write(temporary)
        pack(temporary)


def save_changed(
    folder: Path,
    model: PreTrainedModel,
    parent: Checkpoint,
    node: str,
    step: dict[str, Any],
    **changes: Any,
) -> None:
    """Write the checkpoint that one step without training made of `parent`, with the same generation spec.

    `step` is the step's entry in the lineage except its name, `changes` are other fields of the manifest.
    """
    described = parent.manifest.extra_modules
    save_checkpoint(
        folder,
        model,
        parent.tokenizer,
        parent.manifest.after(node, step, **changes),
        extra_modules=answering_modules(parent),
        module_settings=described.settings if described else None,
    )


def relabel_checkpoint(parent: Path, folder: Path, provenance: Provenance) -> None:
    """Copy a checkpoint with another provenance, without the log of its training.

    Raises:
        CopraError: as `checked_manifest` does.
    """
    manifest = checked_manifest(parent)
    files = {name: sha256 for name, sha256 in manifest.files.items() if name != LOG}
    changes = {name: getattr(provenance, name) for name in Provenance.model_fields}
    with replacing(folder) as temporary:
        for name in files:
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(parent / name, temporary / name)
        manifest.model_copy(update={**changes, "files": files}).write(temporary)
        pack(temporary)


def answering_modules(checkpoint: Checkpoint) -> nn.ModuleDict:
    """Return the extra modules that answering needs. Others may not fit a model after pruning."""
    names = checkpoint.manifest.answering_modules
    return nn.ModuleDict({name: checkpoint.extra_modules[name] for name in names})


def _save_extra_modules(
    file: Path, extra_modules: nn.ModuleDict | None, settings: dict[str, dict[str, Any]], dtype: torch.dtype
) -> dict[str, Any] | None:
    """Write the extra modules, if any, and return their entry in the manifest except the checksum."""
    if not extra_modules:
        return None
    save_model(extra_modules.to(dtype), str(file))
    return {
        "settings": {name: settings.get(name, {}) for name in extra_modules},
        "parameters": {
            name: sum(p.numel() for p in each.parameters()) for name, each in extra_modules.items()
        },
        "bytes": file.stat().st_size,
    }
