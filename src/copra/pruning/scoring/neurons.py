"""Importance scores of FFN neurons. a_i is the activation of neuron i before the down projection."""

from torch import Tensor

from copra.pruning.scoring.record import Sums, Tokens, activation_sums, gradient_scores, gradient_sums


def neuron_sums(activations: Tensor, gradients: Tensor, tokens: Tokens) -> Sums:
    """Return what a batch adds to the scores of the I neurons of a layer, [I] each.

    `activations` and the `gradients` of the loss with respect to them are those at the tokens, [M, I].
    """
    return {
        "activation": activation_sums(activations, tokens),
        **gradient_sums(activations * gradients, tokens),
    }


def neuron_scores(sums: Sums, examples: int) -> dict[str, Tensor]:
    """Return scores [I] by metric.

    `gradient`: the derivative of the loss for a mask on the neuron, a_i dL/da_i. `activation`: sqrt of the
    sum over examples of (mean over tokens of |a_i|)^2 (Minitron, arXiv 2407.14679, section 2.2).
    """
    return {**gradient_scores(sums, examples), "activation": sums["activation"].sqrt()}
