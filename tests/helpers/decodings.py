"""The ways to answer that decoding is tested with, for the tiny models of 50 tokens."""

from dataclasses import replace

from copra.data.sequences import GenerationSpec

PAD, LENGTHS, LIMIT = 0, (3, 11, 6, 6, 1, 8, 14, 2), 10
HIDDEN = GenerationSpec(prefix_ids=(47,), latents=3, thought="hidden", latent_token=48, suffix_ids=(49,))
DECODINGS = {
    "none": None,
    "hidden": HIDDEN,
    "scaled": GenerationSpec((47,), 3, "hidden", 48, (49,), "scaled"),
    "one hidden": GenerationSpec((47,), 1, "hidden", 48, (49,)),
    "bare hidden": GenerationSpec((), 2, "hidden", 48, ()),
    "embedding": GenerationSpec((47,), 3, "embedding", 48, (49,)),
    "zero latents": GenerationSpec((47,), 0, "hidden", 48, (49,)),
    "no thought": GenerationSpec((), 0, "hidden", 48, ()),
    "projected": GenerationSpec((47,), 3, "hidden", 48, (49,), "projected"),
    "jacobi 1": replace(HIDDEN, iterations=1),
    "jacobi 2": replace(HIDDEN, iterations=2),
    "jacobi 3": replace(HIDDEN, iterations=3),
    "jacobi 9": replace(HIDDEN, iterations=9),
    "jacobi projected": GenerationSpec((47,), 4, "hidden", 48, (49,), "projected", iterations=2),
    "bare jacobi": GenerationSpec((), 2, "hidden", 48, (), "scaled", iterations=1),
    "emulated": GenerationSpec((), 0, "hidden", 48, (), emulated=True),
}
