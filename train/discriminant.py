"""A linear classifier with a closed form: discriminant analysis with equal priors and a shrunk covariance.

Regression onto class indicators would do for two classes; of several in a row, as grades of a disease are, it never
names those in the middle (Hastie, Tibshirani and Friedman 2009, section 4.2). There is nothing to choose and nothing to
iterate: the same features give the same scores.

Shapes: V volumes, C features, K classes. Everything is float64 on the CPU.
"""

from dataclasses import dataclass
from typing import Final, Self

import torch
from torch import Tensor

LEAST_STD: Final = 1e-5  # of features of size 1: what varies by less is rounding of float32
LEAST_VARIANCE: Final = 1e-8  # added to standardised features, so that constant ones can be inverted


@dataclass(frozen=True, slots=True, kw_only=True)
class Discriminant:
    """`probabilities` are the softmax of a linear function of standardised features."""

    mean_C: Tensor
    std_C: Tensor
    weight_KC: Tensor
    bias_K: Tensor

    @classmethod
    def fit(cls, x_VC: Tensor, labels_V: Tensor, num_classes: int) -> Self:
        """Class means, and one covariance for all classes; a volume of each class is needed.

        Features are standardised by their spread within classes: what differs between them is not shrunk away.
        """
        means_KC = torch.stack([x_VC[labels_V == label].mean(0) for label in range(num_classes)])
        within_VC, mean_C = x_VC - means_KC[labels_V], means_KC.mean(0)
        std_C = within_VC.square().mean(0).sqrt().clamp_min(LEAST_STD)
        centres_KC = (means_KC - mean_C) / std_C
        covariance_CC = shrunk_covariance(within_VC / std_C)
        covariance_CC.diagonal().add_(LEAST_VARIANCE)
        weight_KC = torch.cholesky_solve(centres_KC.T, torch.linalg.cholesky(covariance_CC)).T
        return cls(mean_C=mean_C, std_C=std_C, weight_KC=weight_KC, bias_K=-0.5 * (weight_KC * centres_KC).sum(1))

    def probabilities(self, x_VC: Tensor) -> Tensor:
        """Of each class, `[V, K]`."""
        return torch.softmax((x_VC - self.mean_C) / self.std_C @ self.weight_KC.T + self.bias_K, dim=1)


def shrunk_covariance(centred_VC: Tensor) -> Tensor:
    """The covariance drawn towards a multiple of the identity, by as much as makes its expected error least.

    Ledoit and Wolf 2004, "A well-conditioned estimator for large-dimensional covariance matrices", lemmas 3.2 to 3.4:
    with fewer volumes than features the covariance alone cannot be inverted.
    """
    V, C = centred_VC.shape
    covariance_CC = centred_VC.T @ centred_VC / V
    mean = covariance_CC.trace() / C
    size = covariance_CC.square().sum()
    distance = size - C * mean.square()  # squared, of the covariance from the multiple of the identity
    error = (centred_VC.square().sum(1).square().sum() / V - size) / V  # squared, that volumes by chance cause
    share = (error / distance).clamp(0, 1) if distance > 0 else torch.ones_like(mean)
    identity_CC = torch.eye(C, dtype=centred_VC.dtype)
    return (1 - share) * covariance_CC + share * mean * identity_CC


def balanced_accuracy(probabilities_VK: Tensor, labels_V: Tensor, groups_V: Tensor | None = None) -> float:
    """The mean over classes of the share that is called what it is; each class must occur.

    Args:
        probabilities_VK: of each volume.
        labels_V: of each volume, the same within a group.
        groups_V: 0, 1, ... of each volume: who shares one answer, by the mean of its volumes. None: nobody.
    """
    K = probabilities_VK.shape[1]
    if groups_V is not None:
        G = int(groups_V.max()) + 1
        total_GK = torch.zeros(G, K, dtype=probabilities_VK.dtype).index_add_(0, groups_V, probabilities_VK)
        labels_V = torch.zeros(G, dtype=labels_V.dtype).index_copy_(0, groups_V, labels_V)
        probabilities_VK = total_GK  # a sum and a mean have one largest class
    is_right_V = (probabilities_VK.argmax(1) == labels_V).double()
    return float(torch.stack([is_right_V[labels_V == label].mean() for label in range(K)]).mean())
