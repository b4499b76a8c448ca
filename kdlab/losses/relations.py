"""Losses between relations: how the samples of a batch lie to each other, not where they lie.

Conventions of all but `contrastive_loss`: student and teacher, ``[B, ...]``, are flattened to rows
``[B, d]``, whose lengths d may differ, because only tables ``[B, B]`` (or ``[B, B, B]``) of
relations meet. None depends on the order of the batch, nor on the scale of the features. A sample's
value is the mean over its row of the table, so ``reduction="none"`` gives ``[B]`` and its mean is
the loss. A row speaks of the other samples too: a weight on a value does *not* remove that sample.
The teacher is detached; half precision is computed, and returned, in float32. Compared in
lesson 02.
"""

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlab.losses.checks import (
    check_count,
    check_features,
    check_positive,
    check_reduction,
    check_temperature,
    compute_dtype,
    prepare_features,
    reduce,
    unit,
    values_are_checked,
)
from kdlab.losses.divergences import kl_divergence

KERNEL_FLOOR = 1e-7  # what keeps the logarithm of two opposite directions' similarity finite


def similarity_preserving_loss(
    student: Tensor, teacher: Tensor, *, reduction: str = "mean"
) -> Tensor:
    """Similarity preserving (SP): ‖Ĝ_S − Ĝ_T‖² / B², the mean squared difference of two tables.

    G = F Fᵀ holds the inner products of the rows of F; in Ĝ each row of G has unit length.
    A sample whose features are all 0 has a row of zeros and a gradient of 0.

    Args:
        student, teacher: ``[B, d]``, ``[B, N, d]`` or ``[B, c, h, w]`` with one B ≥ 2.
        reduction: "mean" or "none": ``[B]``, the mean over each sample's row.

    Raises:
        ValueError: other ranks, different B, fewer than two samples, different devices, NaN or
            infinite features of the teacher, an unknown reduction.

    Source: Tung, Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019,
    arXiv:1907.09682. Compared in lesson 02.
    """
    check_reduction(reduction)
    rows_s, rows_t = _rows(student, teacher)
    table_s, table_t = (unit(rows @ rows.mT, -1) for rows in (rows_s, rows_t))
    return reduce((table_s - table_t).square().mean(-1), None, reduction)


def relational_distance_loss(
    student: Tensor, teacher: Tensor, *, reduction: str = "mean"
) -> Tensor:
    """RKD-D: the mean over all B² pairs of Huber(ψ_S − ψ_T), ψ_ij = ‖f_i − f_j‖ / μ.

    μ is the mean distance of the pairs that are apart. Huber(x) is ½x² up to 1 and |x| − ½ beyond.
    The differences are formed before they are squared: ‖a‖² + ‖b‖² − 2ab, which published code
    uses, leaves rounding noise between equal rows, with a large gradient that means nothing. Here
    rows that are equal within rounding have distance 0 and gradient 0. Memory: B² and B · d.

    Args:
        student, teacher: ``[B, d]``, ``[B, N, d]`` or ``[B, c, h, w]`` with one B ≥ 2.
        reduction: "mean" or "none": ``[B]``, the mean over each sample's pairs.

    Raises:
        ValueError: as `similarity_preserving_loss`.

    The paper sums over the pairs; the mean, with the B pairs (i, i) that are always 0, is that of
    the authors' code, for which the usual weight of 25 is meant.
    Source: Park, Kim, Lu, Cho, "Relational Knowledge Distillation", CVPR 2019, arXiv:1904.05068.
    Compared in lesson 02.
    """
    check_reduction(reduction)
    mine, theirs = (_distances(rows) for rows in _rows(student, teacher))
    return reduce(F.smooth_l1_loss(mine, theirs, reduction="none").mean(-1), None, reduction)


def relational_angle_loss(student: Tensor, teacher: Tensor, *, reduction: str = "mean") -> Tensor:
    """RKD-A: the mean over all B³ triplets of Huber(ψ_S − ψ_T), ψ_ijk = cos ∠(f_i, f_j, f_k).

    The angle lies at f_j: with e_ij = (f_i − f_j) / ‖f_i − f_j‖ its cosine is e_ij · e_kj. Where
    two rows are equal within rounding there is no direction: e = 0, with a gradient of 0.

    Args:
        student, teacher: ``[B, d]``, ``[B, N, d]`` or ``[B, c, h, w]`` with one B ≥ 3. Memory grows
            with B³ (B = 64: 1 MB a table in float32, B = 512: 0.5 GB, several of them), not with d.
        reduction: "mean" or "none": ``[B]``, the mean over the triplets with the angle at f_j.

    Raises:
        ValueError: as `similarity_preserving_loss`; fewer than three samples.

    As for the distances, the mean is that of the authors' code; it counts triplets with i = j or
    k = j, which are always 0, too. The usual weight is 50.
    Source: Park, Kim, Lu, Cho, "Relational Knowledge Distillation", CVPR 2019, arXiv:1904.05068.
    Compared in lesson 02.
    """
    check_reduction(reduction)
    mine, theirs = (_cosines_at_each(rows) for rows in _rows(student, teacher, least=3))
    return reduce(F.smooth_l1_loss(mine, theirs, reduction="none").mean((1, 2)), None, reduction)


def correlation_congruence_loss(
    student: Tensor,
    teacher: Tensor,
    gamma: float = 0.4,
    order: int = 2,
    *,
    reduction: str = "mean",
) -> Tensor:
    """Correlation congruence (CC): ‖C_S − C_T‖² / B² with the Gaussian kernel's correlations.

    Of rows of unit length, exp(−γ‖a − b‖²) = e^(−2γ) · exp(2γ a·b); C_ij is its Taylor polynomial
    e^(−2γ) · Σ_p (2γ)^p / p! · (f̂_i · f̂_j)^p, p from 0 to the order. A row of zeros counts as
    orthogonal to all.

    Args:
        student, teacher: ``[B, d]``, ``[B, N, d]`` or ``[B, c, h, w]`` with one B ≥ 2.
        gamma: γ > 0, the kernel's inverse width.
        order: the highest power, at least 1.
        reduction: "mean" or "none": ``[B]``, the mean over each sample's row.

    Raises:
        ValueError: as `similarity_preserving_loss`; a γ or an order out of range.

    This is the paper's loss. Code that goes by this name (it came from an author) multiplies the
    differences |f_S − f_T| of *neighbours in the batch* instead, so it needs equal sizes and
    changes with the order of the batch; weights of 0.02 belong to that one.
    Source: Peng, Jin, Liu, Zhou, Wu, Liu, Li, Zhang, "Correlation Congruence for Knowledge
    Distillation", ICCV 2019, arXiv:1904.01802. Compared in lesson 02.
    """
    check_reduction(reduction)
    check_positive("gamma", gamma)
    check_count("order", order)
    powers = [(2 * gamma) ** p / math.factorial(p) for p in range(order + 1)]
    tables = []
    for rows in _rows(student, teacher):
        cosines, table = _cosines(rows), torch.zeros((), dtype=rows.dtype, device=rows.device)
        for factor in reversed(powers):  # Horner's scheme
            table = table * cosines + factor
        tables.append(math.exp(-2 * gamma) * table)
    return reduce((tables[0] - tables[1]).square().mean(-1), None, reduction)


def probabilistic_transfer_loss(
    student: Tensor, teacher: Tensor, *, reduction: str = "mean"
) -> Tensor:
    """Probabilistic knowledge transfer (PKT): Σ_i KL(p_i ‖ q_i) / B², neighbours as probabilities.

    With K_ij = ½(cos(f_i, f_j) + 1), p_ij = K_ij / Σ_k≠i K_ik of the teacher says how probably
    sample i would pick j ≠ i as its neighbour; q is the student's. K has a floor of 1e-7, so that
    a student with opposite directions gets a finite value.

    Args:
        student, teacher: ``[B, d]``, ``[B, N, d]`` or ``[B, c, h, w]`` with one B ≥ 3: with two
            samples the only neighbour has probability 1.
        reduction: "mean" or "none": ``[B]``, KL(p_i ‖ q_i) / B.

    Raises:
        ValueError: as `similarity_preserving_loss`; fewer than three samples.

    As in the paper a sample is not its own neighbour; the authors' code lets it be one, with the
    constant K_ii = 1, which makes its value 2 % smaller at B = 64 and 1 % at B = 128. The paper
    sums over the table; the mean over B² entries is that of the code, for which the usual weight of
    30000 is meant, in batches of 64. The value is the mean divergence of a sample divided by B, so
    the same weight pulls half as much in batches of 128.
    Source: Passalis, Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer",
    ECCV 2018, arXiv:1803.10837. Compared in lesson 02.
    """
    check_reduction(reduction)
    log_q, log_p = (_log_neighbours(rows) for rows in _rows(student, teacher, least=3))
    return reduce(kl_divergence(log_p, log_q) / len(student), None, reduction)


def instance_edge_loss(student: Tensor, teacher: Tensor, *, reduction: str = "mean") -> Tensor:
    """IRG's edges: ‖E_S − E_T‖² / B², E_ij = ‖f_i − f_j‖² in units of the largest of the batch.

    Rows that are all equal within rounding have edges of 0, with a gradient of 0.

    Args:
        student, teacher: ``[B, d]``, ``[B, N, d]`` or ``[B, c, h, w]`` with one B ≥ 2.
        reduction: "mean" or "none": ``[B]``, the mean over each sample's edges.

    Raises:
        ValueError: as `similarity_preserving_loss`.

    The unit and the mean over all B² edges are those of the public PyTorch code
    (github.com/AberHu/Knowledge-Distillation-Zoo), for which the usual weight of 5 is meant. It
    forms the squares from inner products, which leaves rounding noise; here from differences.
    Source: Liu, Cao, Li, Yuan, Hu, Li, Duan, "Knowledge Distillation via Instance Relationship
    Graph", CVPR 2019 (not on arXiv).
    """
    check_reduction(reduction)
    mine, theirs = (_edges(rows) for rows in _rows(student, teacher))
    return reduce((mine - theirs).square().mean(-1), None, reduction)


def instance_transformation_loss(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], *, reduction: str = "mean"
) -> Tensor:
    """IRG's transformation: mean (Λ_S − Λ_T)², how far each sample moves from layer to layer.

    Λ_i = ‖f_i − g_i‖² in units of the largest of the batch, with f and g a sample's features in two
    layers of one network, at one size. Layers that are equal have Λ = 0, with a gradient of 0.

    Args:
        student: two tensors of one shape, ``[B, ...]`` with B ≥ 2.
        teacher: the same of the teacher; all sizes but B may be others.
        reduction: "mean" or "none": ``[B]``.

    Raises:
        ValueError: as `similarity_preserving_loss`; two layers of different shapes.

    Source: as `instance_edge_loss`. The paper compares the movement of the edges, too; the public
    code leaves it out, and so does this.
    """
    check_reduction(reduction)
    for who, (first, second) in (("student", student), ("teacher", teacher)):
        if first.shape != second.shape:
            raise ValueError(
                f"{who}: got layers of shapes {list(first.shape)} and {list(second.shape)}, "
                "expected one shape: bring the larger to the smaller's size (the distiller does so)"
            )
    # Side by side, both layers of a network get one scale.
    both = [torch.stack(layers, 1).flatten(2) for layers in (student, teacher)]
    mine, theirs = (_moves(rows) for rows in _rows(both[0], both[1]))
    return reduce((mine - theirs).square(), None, reduction)


def contrastive_loss(
    anchors: Tensor,
    bank: Tensor,
    positive: Tensor,
    negatives: Tensor,
    temperature: float = 0.07,
    *,
    reduction: str = "mean",
) -> Tensor:
    """The noise-contrastive half of CRD: tell an image's own row of a bank from N others.

    −log D(positive) − Σ_negatives log(1 − D), D_j = h_j / (h_j + N / M),
    h_j = exp(f̂ · m_j / τ) / Z. The whole of CRD is this with the student's embeddings against the
    teacher's bank, plus this with the teacher's against the student's. Computed as softplus of
    logits, so that nothing overflows; the released code adds 1e-7 to the denominators instead.

    Args:
        anchors: embeddings ``[B, d]``; scaled to unit length here. They get the gradient, whichever
            model they come from: detach features, not embeddings (the teacher's is learned too).
        bank: ``[M, d]`` with rows of unit length, one per training image; detached.
        positive: int64 ``[B]``, the row of each anchor's own image.
        negatives: int64 ``[B, N]``, rows of other images.
        temperature: τ > 0.
        reduction: "mean" or "none": ``[B]``.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit; rows that the bank does not have; a
            positive among its own negatives; τ ≤ 0; an unknown reduction.

    Z = M · mean of exp(u · m / τ) over directions at random, `log_mean_exp_cosine`. The released
    code measures the same mean on its first batch, when the bank is random; the closed form is
    its expectation, equal on every machine and nothing to store.
    Source: Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020,
    arXiv:1910.10699. Compared in lesson 02.
    """
    check_reduction(reduction)
    check_temperature("temperature", temperature)
    check_features("anchors", anchors, (2,))
    check_features("bank", bank, (2,))
    if anchors.shape[1] != bank.shape[1] or anchors.device != bank.device:
        raise ValueError(
            f"anchors: shape {list(anchors.shape)} on {anchors.device}, expected [B, "
            f"{bank.shape[1]}] on {bank.device} as the bank: embed both sides in one dimension"
        )
    _check_choice(anchors, bank, positive, negatives)
    dtype = compute_dtype(anchors, bank)
    # All M scores at once: for N near M this is d times less memory than collecting N rows each.
    scores = unit(anchors.to(dtype), -1) @ bank.detach().to(dtype).mT / temperature
    # h / (h + N / M) with Z in full: M cancels.
    log_noise = math.log(negatives.shape[1]) + log_mean_exp_cosine(bank.shape[1], temperature)
    own = scores.gather(1, positive.unsqueeze(1)).squeeze(1) - log_noise
    others = scores.gather(1, negatives) - log_noise
    return reduce(F.softplus(-own) + F.softplus(others).sum(-1), None, reduction)


@cache
def log_mean_exp_cosine(width: int, temperature: float) -> float:
    """log E[exp(u · m / τ)] of a fixed and a random direction in d dimensions.

    It is log ₀F₁(; d/2; 1 / 4τ²), summed here as Σ_k (1 / 4τ²)^k / (k! (d/2)_k). The terms fall
    off fast from k = 1 / τ on.
    """
    k = torch.arange(int(1 / temperature) + 50, dtype=torch.float64)
    half = torch.tensor(width / 2, dtype=torch.float64)
    log_rising = torch.lgamma(half + k) - torch.lgamma(half)
    log_terms = -k * math.log(4 * temperature**2) - torch.lgamma(k + 1) - log_rising
    return float(log_terms.logsumexp(0))


def _check_choice(anchors: Tensor, bank: Tensor, positive: Tensor, negatives: Tensor) -> None:
    """Raise ValueError unless both are rows of the bank for each anchor, and apart."""
    batch = len(anchors)
    fits = {
        "positive": (positive, positive.shape == (batch,), f"[{batch}]"),
        "negatives": (
            negatives,
            negatives.dim() == 2 and len(negatives) == batch and negatives.shape[1] > 0,
            f"[{batch}, N] with N of at least 1",
        ),
    }
    for name, (rows, fit, form) in fits.items():
        if rows.dtype != torch.int64 or rows.device != bank.device or not fit:
            raise ValueError(
                f"{name}: {rows.dtype} {list(rows.shape)} on {rows.device}, expected int64 {form} "
                f"on {bank.device}: rows of the bank"
            )
        if values_are_checked() and not bool(((rows >= 0) & (rows < len(bank))).all()):
            raise ValueError(
                f"{name}: values from {int(rows.min())} to {int(rows.max())}, expected rows of "
                f"the bank, 0 to {len(bank) - 1}"
            )
    if values_are_checked() and bool((negatives == positive.unsqueeze(1)).any()):
        raise ValueError("negatives: the positive is among them, expected other images only")


def _rows(student: Tensor, teacher: Tensor, least: int = 2) -> tuple[Tensor, Tensor]:
    """Both as rows ``[B, d]`` in the computing dtype, the teacher's detached, of size 1 at most.

    Dividing by the largest entry changes no relation here, and no gradient, since none has a
    scale; it keeps all squares in range.
    """
    for name, features in (("student", student), ("teacher", teacher)):
        check_features(name, features, (2, 3, 4))
    if len(student) < least:
        raise ValueError(
            f"student: shape {list(student.shape)}, expected at least {least} samples: "
            "a relation needs company, take a larger batch"
        )
    pair = prepare_features(student.flatten(1), teacher.flatten(1), (2,), any_channels=True)
    mine, theirs = (rows / _peak(rows) for rows in pair)
    return mine, theirs


def _peak(rows: Tensor) -> Tensor:
    peak = rows.detach().abs().amax()
    return peak.where(peak != 0, 1.0)


def _cosines(rows: Tensor) -> Tensor:
    directions = unit(rows, -1)
    return directions @ directions.mT


def _apart(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The rows as `_coordinates`, all distances ``[B, B]``, and where these are only rounding.

    From differences, not from products, and without a table of all differences in memory.
    """
    points = _coordinates(rows)
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    size = rows.detach().square().sum(-1)
    turned = points is not rows and points.dtype == rows.dtype  # which adds rounding of its own
    eps = (64 if turned else 4) * torch.finfo(rows.dtype).eps
    rounding = eps * (size.unsqueeze(0) + size.unsqueeze(1)).sqrt()
    same = distances <= rounding  # False for NaN, which must stay visible
    return points, distances.masked_fill(same, 0.0), same


def _distances(rows: Tensor) -> Tensor:
    """All distances ``[B, B]`` in units of the mean of those above 0."""
    _, distances, same = _apart(rows)
    distances = distances.to(rows.dtype)
    mean = distances.sum() / (~same).sum().clamp(min=1)
    return distances / mean.masked_fill(same.all(), 1.0)


def _cosines_at_each(rows: Tensor) -> Tensor:
    """The cosine of the angle at j between i and k, at ``[j, i, k]``."""
    points, _, same = _apart(rows)
    difference = (points.unsqueeze(0) - points.unsqueeze(1)).to(rows.dtype)
    length = difference.square().sum(-1).masked_fill(same, 1.0).sqrt().masked_fill(same, torch.inf)
    directions = difference / length.unsqueeze(-1)
    return directions @ directions.mT


def _coordinates(rows: Tensor) -> Tensor:
    """The rows ``[B, d]`` in at most B coordinates, with the same inner products and gradients.

    B rows lie in B dimensions, however long they are. The axes need no gradient: that of a function
    of the rows' differences lies within these dimensions. Double precision, where the device has
    it, leaves rows that are nearly equal as near to each other as they were.
    """
    if rows.shape[1] <= 2 * len(rows):
        return rows  # too little to gain
    dtype = rows.dtype if rows.device.type == "mps" else torch.float64
    axes, _ = torch.linalg.qr(rows.detach().to(dtype).mT)
    return rows.to(dtype) @ axes


def _edges(rows: Tensor) -> Tensor:
    """All squared distances ``[B, B]`` in units of the largest."""
    squares = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").square()
    return _in_units_of_the_largest(squares, rows)


def _moves(rows: Tensor) -> Tensor:
    """The squared distance ``[B]`` between the halves of each row, in units of the largest."""
    first, second = rows.chunk(2, dim=1)
    return _in_units_of_the_largest((first - second).square().sum(1), rows)


def _in_units_of_the_largest(squares: Tensor, rows: Tensor) -> Tensor:
    """Squared distances of ``rows`` divided by their largest; all 0 where that is rounding."""
    peak = squares.amax()
    size = rows.detach().square().sum(-1).amax()
    rounding = 2 * (4 * torch.finfo(rows.dtype).eps) ** 2 * size
    nothing = peak <= rounding  # False for NaN, which must stay visible
    return squares.masked_fill(nothing, 0.0) / peak.masked_fill(nothing, 1.0)


def _log_neighbours(rows: Tensor) -> Tensor:
    """Log-probabilities ``[B, B]`` of each sample's neighbours; 0 at the sample itself.

    There p and q are then equal, so that the divergence leaves that place out.
    """
    own = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    kernel = (0.5 * (_cosines(rows) + 1)).clamp(min=0.0) + KERNEL_FLOOR
    total = kernel.masked_fill(own, 0.0).sum(-1, keepdim=True)
    return (kernel.log() - total.log()).masked_fill(own, 0.0)
