"""Losses between the slopes of a student and of a teacher: their gradients by the input.

``input_gradient`` makes the slopes, the losses compare them. Slopes have the shape of the images,
``[B, c, h, w]`` or ``[B, d]``. The losses detach the teacher's side and keep the student's graph:
``backward`` differentiates a second time, now by the weights. Half precision is computed, and
returned, in float32. Lesson 03 derives them.
"""

import torch
from torch import Tensor

from kdlab.losses.checks import (
    all_finite,
    check_reduction,
    compute_dtype,
    reduce,
    unit,
    values_are_checked,
)


def input_gradient(
    outputs: Tensor, inputs: Tensor | None, weights: Tensor | None = None, *, create_graph: bool
) -> Tensor:
    """The slope of each sample: ∂ Σ_k w_bk · outputs_bk / ∂ inputs_b, all in one backward pass.

    One pass over the batch's sum gives every sample its own slope, as long as the model treats the
    samples alone. Batch norm in training mode does not: a row then also holds how this sample moves
    the *other* outputs through the batch's mean and variance, and over a plain sum those parts add
    up to an error as large as the slope itself, whatever the size of the batch. Therefore every
    other sample enters the sum with a minus, which is taken back afterwards. Where samples are
    treated alone this changes nothing, to the last bit; else the other parts cancel, up to about
    1 / √B. In eval mode there is no such part.

    Differentiating the result by the weights asks for the second derivative of every layer. That
    of ReLU and of max-pooling is zero almost everywhere, so what is learned there comes through the
    slopes of the linear pieces alone; SiLU and Softplus (``build(..., activation="silu")``) curve.

    Args:
        outputs: ``[B]``, or ``[B, K]`` together with ``weights``.
        inputs: ``[B, ...]``, the leaf that ``outputs`` were computed from, with ``requires_grad``.
        weights: ``[K]`` for all samples or ``[B, K]`` (``[B]`` for outputs ``[B]``); a row of the
            identity picks one output, any other the sum that it weighs. Not differentiated.
        create_graph: True for the student, whose weights learn from the slope; False for a teacher.
            The graph of ``outputs`` is kept in both cases.

    Returns:
        ``[B, ...]``, as ``inputs``.

    Raises:
        ValueError: inputs that do not require gradients, outputs that do not depend on them, shapes
            that do not fit, ``[B, K]`` outputs without weights.
    """
    if inputs is None or not inputs.requires_grad:
        raise ValueError(
            f"inputs: {'None' if inputs is None else 'a tensor without requires_grad'}, expected "
            "the images that the model saw, with requires_grad (a Distiller asks for them with "
            "needs_input_gradients = True)"
        )
    _check_outputs(outputs, inputs, weights)
    signs = torch.ones(len(outputs), dtype=outputs.dtype, device=outputs.device)
    signs[1::2] = -1
    grown = signs.view(-1, *[1] * (outputs.dim() - 1)).expand_as(outputs)
    if weights is not None:
        grown = grown * weights.detach().to(outputs)
    (slope,) = torch.autograd.grad(
        outputs, inputs, grown, create_graph=create_graph, retain_graph=True, allow_unused=True
    )
    if slope is None:
        raise ValueError(
            "inputs: the outputs do not depend on them, expected the very tensor that went into "
            "the model (a copy or a view of it is another tensor)"
        )
    return slope * signs.to(slope.dtype).view(-1, *[1] * (slope.dim() - 1))


def jacobian_matching_loss(student: Tensor, teacher: Tensor, *, reduction: str = "mean") -> Tensor:
    """Jacobian matching: ‖ s / ‖s‖ − t / ‖t‖ ‖² = 2 − 2 cos(s, t), of one slope per sample.

    Only the directions count. A slope of 0 has the unit-length slope 0 (and a gradient of 0): the
    value is then 1, or 0 if both are.

    Noise is the same in disguise. With g = f_S − f_T and a small input noise ξ of variance σ² in
    each dimension, E g(x + ξ)² = g² + σ² (‖∇g‖² + g Δg) + O(σ⁴): a student that matches values on
    noisy inputs matches slopes, too. The paper leaves g Δg out (Δ sums the second derivatives). It
    is zero where the values agree, and almost everywhere in ReLU networks.

    Args:
        student: slopes ``[B, ...]`` by `input_gradient` with ``create_graph=True``.
        teacher: slopes of the same shape, finite.
        reduction: "mean" over the samples, or "none": ``[B]``, each in [0, 4].

    Raises:
        ValueError: shapes, dtypes or devices that do not fit; an empty batch; a teacher with NaN or
            infinite slopes; an unknown reduction.

    Source: Srinivas, Fleuret, "Knowledge Transfer with Jacobian Matching", ICML 2018,
    arXiv:1803.00443. Derived in lesson 03.
    """
    check_reduction(reduction)
    student, teacher = _prepare(student, teacher, 2)
    gap = unit(student.flatten(1), 1) - unit(teacher.flatten(1), 1)
    return reduce(gap.square().sum(1), None, reduction)


def sobolev_loss(student: Tensor, teacher: Tensor, *, reduction: str = "mean") -> Tensor:
    """Sobolev training of order 1: 1/k · Σ_j ‖ s_j − t_j ‖², of k slopes per sample.

    s_j and t_j are the derivatives of the outputs in direction v_j (of the space of the outputs):
    s_j = v_jᵀ J_S. With the C unit vectors this is 1/C · ‖J_S − J_T‖², the whole Jacobian. With
    random directions of length 1, evenly spread over the sphere, E v vᵀ = I / C, so the expected
    value is the same 1/C · ‖J_S − J_T‖² for any k. The paper sums over all outputs: C times this.

    Args:
        student: slopes ``[B, k, ...]``, the same directions as the teacher's.
        teacher: slopes of the same shape, finite.
        reduction: "mean" over the samples, or "none": ``[B]``.

    Raises:
        ValueError: as `jacobian_matching_loss`.

    Source: Czarnecki, Osindero, Jaderberg, Świrszcz, Pascanu, "Sobolev Training for Neural
    Networks", NeurIPS 2017, arXiv:1706.04859. Derived in lesson 03.
    """
    check_reduction(reduction)
    student, teacher = _prepare(student, teacher, 3)
    return reduce((student - teacher).square().flatten(2).sum(2).mean(1), None, reduction)


def gradient_attention_loss(
    student: Tensor, teacher: Tensor, *, mask: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    """Gradient attention transfer: ½ ‖ J_S − J_T ‖², where J = ∂ CE(label) / ∂ input.

    J says to which pixels the loss of this image is sensitive. It is the gradient of the image's
    own cross-entropy, not of the batch's mean, which would be B times smaller.

    Args:
        student: J_S ``[B, ...]`` by `input_gradient` with ``create_graph=True``.
        teacher: J_T of the same shape, finite where the mask is True.
        mask: bool ``[B]``, True = takes part (has a label); None for all.
        reduction: "mean" over the samples that take part (0 if none does), or "none": ``[B]``, 0
            for who takes no part.

    Raises:
        ValueError: as `jacobian_matching_loss`; a mask of another shape or dtype.

    Source: Zagoruyko, Komodakis, "Paying More Attention to Attention", ICLR 2017, section 3.2,
    arXiv:1612.03928. The paper writes the length without a square, but the gradient that it gives
    is that of ½ ‖·‖², which is taken here. Derived in lesson 03.
    """
    check_reduction(reduction)
    student, teacher = _prepare(student, teacher, 2, mask)
    return reduce((student - teacher).square().flatten(1).sum(1) / 2, mask, reduction)


def _check_outputs(outputs: Tensor, inputs: Tensor, weights: Tensor | None) -> None:
    if outputs.dim() not in (1, 2) or outputs.shape[:1] != inputs.shape[:1]:
        raise ValueError(
            f"outputs: shape {list(outputs.shape)}, expected [B] or [B, K] with "
            f"B = {inputs.shape[0]}, the batch of the inputs"
        )
    if not outputs.requires_grad:
        raise ValueError(
            "outputs: they have no graph, expected those of a forward pass with gradients turned "
            "on (not inside torch.no_grad, not from a cache)"
        )
    if outputs.dim() == 2 and weights is None:
        raise ValueError(
            f"weights: None for outputs {list(outputs.shape)}, expected [K] or [B, K]: which "
            "output, or which sum of outputs, to differentiate"
        )
    fitting = (outputs.shape, outputs.shape[1:])[: outputs.dim()]
    if weights is not None and weights.shape not in fitting:
        forms = " or ".join(str(list(shape)) for shape in fitting)
        raise ValueError(f"weights: shape {list(weights.shape)}, expected {forms}")


def _prepare(
    student: Tensor, teacher: Tensor, least: int, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Check a pair of slopes; return both in the computing dtype, the teacher's detached.

    What is masked out becomes 0 before anything is computed, so that its gradient is 0 even if it
    is NaN.
    """
    form = {2: "[B, ...]", 3: "[B, k, ...]"}[least]
    for name, slopes in {"student": student, "teacher": teacher}.items():
        if not torch.is_floating_point(slopes):
            raise ValueError(f"{name}: dtype {slopes.dtype}, expected floating-point slopes")
        if slopes.dim() < least or 0 in slopes.shape:
            raise ValueError(
                f"{name}: shape {list(slopes.shape)}, expected slopes {form} with no side of 0"
            )
    if teacher.shape != student.shape:
        raise ValueError(
            f"teacher: shape {list(teacher.shape)}, expected student's {list(student.shape)}: "
            "do both see the same images?"
        )
    if teacher.device != student.device:
        raise ValueError(
            f"teacher: on {teacher.device}, expected student's {student.device}: "
            "move one of them with .to(device)"
        )
    dtype = compute_dtype(student, teacher)
    teacher = teacher.detach()
    if mask is not None:
        if mask.dtype != torch.bool or mask.shape != student.shape[:1]:
            raise ValueError(
                f"mask: {mask.dtype} of shape {list(mask.shape)}, expected torch.bool of shape "
                f"{list(student.shape[:1])} (True = takes part)"
            )
        keep = mask.view(-1, *[1] * (student.dim() - 1))
        student, teacher = student.where(keep, 0.0), teacher.where(keep, 0.0)
    if values_are_checked() and not all_finite(teacher):
        raise ValueError(
            "teacher: NaN or infinite slopes, expected finite ones: look at the teacher's weights "
            "and at its inputs, or compute it in float32"
        )
    return student.to(dtype), teacher.to(dtype)
