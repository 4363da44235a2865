"""The ways to answer that decoding is tested with, for the tiny models of 50 tokens."""

from dataclasses import replace

from copra.data.sequences import Decoding

PAD, LENGTHS, LIMIT = 0, (3, 11, 6, 6, 1, 8, 14, 2), 10
HIDDEN = Decoding(before=(47,), latents=3, thought="hidden", latent_token=48, after=(49,))
DECODINGS = {
    "none": None,
    "hidden": HIDDEN,
    "scaled": Decoding((47,), 3, "hidden", 48, (49,), "scaled"),
    "one hidden": Decoding((47,), 1, "hidden", 48, (49,)),
    "bare hidden": Decoding((), 2, "hidden", 48, ()),
    "embedding": Decoding((47,), 3, "embedding", 48, (49,)),
    "zero latents": Decoding((47,), 0, "hidden", 48, (49,)),
    "no thought": Decoding((), 0, "hidden", 48, ()),
    "projected": Decoding((47,), 3, "hidden", 48, (49,), "projected"),
    "jacobi 1": replace(HIDDEN, iterations=1),
    "jacobi 2": replace(HIDDEN, iterations=2),
    "jacobi 3": replace(HIDDEN, iterations=3),
    "jacobi 9": replace(HIDDEN, iterations=9),
    "jacobi projected": Decoding((47,), 4, "hidden", 48, (49,), "projected", iterations=2),
    "bare jacobi": Decoding((), 2, "hidden", 48, (), "scaled", iterations=1),
    "emulated": Decoding((), 0, "hidden", 48, (), emulated=True),
}
