"""Ask a checkpoint questions of one's own."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas
import torch
from transformers import PreTrainedTokenizerBase

from copra.cost.flops import FlopCounter
from copra.data.sequences import GenerationSpec
from copra.data.tokenization import ANSWER, unknown_words
from copra.evaluation.accuracy import check_length, extracted, predictions, room_for_answers
from copra.generation.answering import GenerationOptions, generate
from copra.generation.decode import Answer
from copra.generation.logit_lens import logit_lens
from copra.generation.prompts import prompts_of
from copra.models.checkpoint import Checkpoint, load_checkpoint
from copra.schema.settings import Precision
from copra.tasks.answers import AnswerKind
from copra.tasks.task import Row
from copra.utils.errors import CopraError
from copra.utils.problems import shown

Likely = list[tuple[str, float]]
"""The likeliest tokens in place of a latent, with their probabilities."""
LONGEST = 256
"""Maximum number of tokens of an answer, unless a limit is given."""


@dataclass(frozen=True)
class Reply:
    """A model's reply to a question.

    `text` is what it wrote, of which `steps` are the lines before the answer and `answer` the answer (None:
    it gave none). `latents` is the number of its latents, and `lens` what each would have been as a token, if
    that was asked for. `flops` are those of the prompt, the latents and all `tokens` written; `seconds` those
    of the batch that it was answered in.
    """

    question: str
    text: str
    answer: str | None
    steps: tuple[str, ...]
    latents: int
    lens: tuple[Likely, ...]
    tokens: int
    flops: float
    seconds: float


@dataclass(frozen=True)
class Model:
    """A checkpoint that answers questions, greedily."""

    checkpoint: Checkpoint

    @property
    def decoding(self) -> GenerationSpec:
        """The sequence by which it answers."""
        assert self.checkpoint.decoding is not None  # `load` refuses others
        return self.checkpoint.decoding

    def answer(self, question: str, max_new_tokens: int | None = None, *, lens: int = 0) -> Reply:
        """Return the reply to one question, with the `lens` likeliest tokens of each latent.

        `max_new_tokens` None are 256, or as many as the model has positions for.

        Raises:
            CopraError: the question is empty, has words that the tokenizer lacks, or leaves too few positions
                for the answer; or a lens is asked of a model without latents that are hidden states.
        """
        (reply,) = self.generate([question], max_new_tokens, lens=lens)
        return reply

    def generate(
        self,
        questions: Sequence[str],
        max_new_tokens: int | None = None,
        batch_size: int = 128,
        *,
        lens: int = 0,
    ) -> list[Reply]:
        """Return the replies to several questions, in their order, as `answer` does."""
        checkpoint, decoding = self.checkpoint, self.decoding
        rows = [Row(_checked(question, checkpoint.tokenizer), (), "") for question in questions]
        if not rows:
            return []
        if lens and not decoding.has_recurrent_latents:
            raise CopraError("this model has no latents that are hidden states, so none to look at")
        asked = prompts_of(checkpoint.tokenizer, rows, decoding)
        if max_new_tokens is None:
            max_new_tokens = max(1, min(LONGEST, room_for_answers(checkpoint, decoding, asked)))
        longest = decoding.longest_answer(max_new_tokens)
        check_length(checkpoint, decoding, rows, asked, longest)
        limits = GenerationOptions(longest, batch_size)
        start = time.perf_counter()
        answers: Sequence[Answer]
        if lens:
            readouts = logit_lens(checkpoint, asked.prompts, decoding, limits, lens)
            answers = [each.answer for each in readouts]
            seen = [
                tuple(self._likely(*pair) for pair in zip(each.tokens, each.probabilities, strict=True))
                for each in readouts
            ]
        else:
            answers = generate(checkpoint, asked, decoding, limits)
            seen = [()] * len(rows)
        seconds = time.perf_counter() - start
        prompts = [len(asked.prefix) + len(prompt) for prompt in asked.prompts]
        together = zip(rows, answers, seen, prompts, strict=True)
        return [self._reply(*each, seconds=seconds) for each in together]

    def predictions(
        self, rows: Sequence[Row], max_new_tokens: int = 256, answers: AnswerKind = "number"
    ) -> pandas.DataFrame:
        """Return one row per question with its gold answer: see `copra.evaluation.accuracy.predictions`."""
        return predictions(self.checkpoint, self.decoding, rows, max_new_tokens, answers)

    def _reply(
        self, row: Row, answer: Answer, lens: tuple[Likely, ...], prompt: int, *, seconds: float
    ) -> Reply:
        text = str(self.checkpoint.tokenizer.decode(answer.tokens, skip_special_tokens=True))
        chain = text.split(ANSWER.strip())[0] if self.decoding.prompting is None else text
        flops = FlopCounter(self.checkpoint.shape).of_answer(self.decoding, prompt, len(answer.tokens))
        return Reply(
            question=row.question,
            text=text,
            answer=extracted(text, self.decoding),
            steps=tuple(filter(None, map(str.strip, chain.splitlines()))),
            latents=self.decoding.latents,
            lens=lens,
            tokens=len(answer.tokens),
            flops=flops.total,
            seconds=seconds,
        )

    def _likely(self, tokens: list[int], probabilities: list[float]) -> Likely:
        names = [str(self.checkpoint.tokenizer.decode([token])) for token in tokens]
        return list(zip(names, probabilities, strict=True))


def load(folder: Path | str, precision: Precision = "float32") -> Model:
    """Return the model of a checkpoint's folder, on the GPU if there is one.

    Raises:
        CopraError: the folder holds no checkpoint, or one that was never trained to answer; or as
            `copra.models.checkpoint.load_checkpoint` does.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)  # see `copra.commands.torch_setup`
    checkpoint = load_checkpoint(Path(folder), precision, to_answer=True)
    if checkpoint.decoding is None:
        raise CopraError(f"{folder}: this model was never trained to answer; take one that was.")
    return Model(checkpoint)


def _checked(question: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a question in one line, as tasks have them, after checking its words."""
    question = " ".join(question.split())
    if not question:
        raise CopraError("the question is empty")
    if unknown := unknown_words(tokenizer, question):
        raise CopraError(
            f"the tokenizer of this model, which was trained on its task alone, lacks "
            f"{', '.join(map(shown, unknown))}; ask with the words of that task"
        )
    return question
