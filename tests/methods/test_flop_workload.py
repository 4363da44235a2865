"""What stages say that they compute, against what is seen at the modules: a row at a time."""

import copy
from collections import Counter

import pytest
from references import MARKERS, PAD, another, draw_rows

from copra.data.batch import collate
from copra.methods import METHODS
from copra.methods.reasoning_model import ReasoningModel
from copra.models.extra_modules import make_extra_modules
from copra.models.looping import loop_layers

WAYS = [
    ("no_cot", {}),
    ("cot", {}),
    ("scratchpad", {}),
    ("pause", {}),
    ("looped", {}),
    ("icot_si", {}),
    ("icot_kd", {}),
    ("coconut", {}),
    ("coconut", {"auxiliary_decoder": {"layers": 2}, "latents_per_step": 2}),
    ("coconut", {"auxiliary_decoder": {"decoder": "shared"}}),
    ("coconut", {"auxiliary_decoder": {"decoder": "pretrained"}}),
    ("codi", {}),
    ("codi", {"auxiliary_decoder": {}, "drop_last_step": False}),
    ("codi", {"iterations": 2}),
    ("codi", {"iterations": 0}),
    ("codi", {"iterations": 6}),
    ("cot", {"distil": {}}),
    ("looped", {"distil": {}}),
    ("scratchpad", {"distil": {"task_weight": 1}}),
    ("coconut", {"distil": {}}),
    ("coconut", {"distil": {"task_weight": 1}, "auxiliary_decoder": {"layers": 2}, "latents_per_step": 2}),
    ("codi", {"distil": {"task_weight": 1}, "iterations": 2}),
    ("codi", {"distil": {}, "iterations": 2}),
]


def seen(reasoner, stage, sample) -> Counter:
    """Tokens or states that each reader reads, and positions at which the LM head is read."""
    found = Counter()

    def watch(module, reader):
        def look(_, args, kwargs):
            tokens = kwargs.get("input_ids")
            found[reader] += (kwargs["inputs_embeds"] if tokens is None else tokens).shape[1]

        module.register_forward_pre_hook(look, with_kwargs=True)

    def watch_states(module, reader, states):
        module.register_forward_pre_hook(lambda _, args: found.update({reader: states(args[0])}))

    watch(reasoner.model.base_model, "model")
    if reasoner.teacher is not None:
        watch(reasoner.teacher.model.base_model, "teacher")
    if "emulator" in reasoner.extra_modules:
        watch(reasoner.extra_modules["emulator"].body, "emulator")
        watch_states(reasoner.extra_modules["emulator"], "emulation", len)
        watch_states(reasoner.extra_modules["mind_reader"], "mind_reader", lambda states: states.shape[1])
    for reader, each in (("projection", reasoner), ("teacher_projection", reasoner.teacher)):
        if each is not None and "projection" in each.extra_modules:
            watch_states(each.extra_modules["projection"], reader, lambda states: states.shape[:-1].numel())
    if "step_decoder" in reasoner.extra_modules:
        watch(reasoner.extra_modules["step_decoder"].body, "step_decoder")
    for reader in filter(None, (reasoner, reasoner.teacher)):
        reader.model.get_output_embeddings().register_forward_hook(
            lambda _, args, __: found.update(head=args[0].shape[0])
        )
    if (head := getattr(reasoner.extra_module("step_decoder"), "head", None)) is not None:
        head.register_forward_hook(lambda _, args, __: found.update(head=args[0].shape[0]))
    stage.loss(reasoner, collate([sample], PAD))
    # An explanation is told by one pass for all texts, padded to the longest.
    assert len(sample.explained) < 2
    return +found


STAGES = [
    pytest.param(method.resolved_stages()[number], id=f"{kind}-{'-'.join(settings)}-{number}")
    for kind, settings in WAYS
    for method in [METHODS[kind](kind=kind, training={"steps": 1}, **settings)]
    for number in method.stages()
]


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_stages_say_what_they_compute(make_model, kind, stage):
    """One row of one step, so that no explanation is padded, and one of none."""
    for row in draw_rows((5, (6,)), (7, ())):
        model = make_model(kind)
        extra_modules = make_extra_modules(model, stage.extra_modules())
        teacher = (
            ReasoningModel(another(model), copy.deepcopy(extra_modules)) if stage.needs_teacher else None
        )
        loop_layers(model, stage.loop)
        sample, said = stage.lay_out(row, MARKERS), Counter()
        for work in stage.flop_workload([sample]):
            said.update({work.reader: work.tokens, "head": work.supervised})
        assert seen(ReasoningModel(model, extra_modules, teacher), stage, sample) == +said
