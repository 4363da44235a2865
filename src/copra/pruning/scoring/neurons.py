"""How much each FFN neuron matters. a_i is the activation of neuron i before the down projection."""

from torch import Tensor

from copra.pruning.scoring.record import Sums, Tokens, activation_sums, gradient_scores, gradient_sums


def neuron_sums(activations: Tensor, gradients: Tensor, tokens: Tokens) -> Sums:
    """What a batch adds to the scores of the I neurons of a layer, [I] each.

    `activations` and the loss's `gradients` for them are taken at the tokens, [M, I].
    """
    return {
        "activation": activation_sums(activations, tokens),
        **gradient_sums(activations * gradients, tokens),
    }


def neuron_scores(sums: Sums, examples: int) -> dict[str, Tensor]:
    """Scores [I] by metric.

    `gradient`: the derivative of the loss for a mask on the neuron, a_i dL/da_i. `activation`: sqrt of the
    sum over examples of (mean over tokens of |a_i|)^2 (Minitron, arXiv 2407.14679, section 2.2).
    """
    return {**gradient_scores(sums, examples), "activation": sums["activation"].sqrt()}
